"""`thistledown presets`: the presets of the app, and what each is for."""

from collections.abc import Iterator
from pathlib import Path


def presets(app: Path) -> Iterator[str]:
    """Yield every preset's name and the first sentences of its comment."""
    for path in sorted((app / "presets").glob("*.toml")):
        yield path.stem
        for line in _about(path):
            yield f"    {line}"
    yield "thistledown run PRESET runs one, thistledown check PRESET shows what it would do"


def _about(path: Path) -> Iterator[str]:
    """Yield the lines of a preset's comment, without the first, which is its command."""
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("#"):
            return
        if said := line.removeprefix("#").strip():
            yield said

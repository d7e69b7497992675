"""An extension in one file, put where its axis looks for files, for one test."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
MOST_LINES = 80


def example(package: str) -> tuple[str, str]:
    """Return the name of the module that CONTRIBUTING shows for a package, and its text."""
    place = re.escape(package.replace(".", "/"))
    found = re.search(rf"```python\n(# {place}/(\w+)\.py\n.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"CONTRIBUTING.md shows no file of {package}"
    assert len(found[1].splitlines()) <= MOST_LINES
    return found[2], found[1]


@contextmanager
def added(package: str, modules: dict[str, str], folder: Path) -> Iterator[None]:
    """Let the package have these modules too, by name and text, which are written into `folder`."""
    owner = importlib.import_module(package)
    folder.mkdir()
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "__path__", [*owner.__path__, str(folder)])
        importlib.invalidate_caches()
        yield
    for name in modules:
        sys.modules.pop(f"{package}.{name}", None)
        if hasattr(owner, name):
            delattr(owner, name)

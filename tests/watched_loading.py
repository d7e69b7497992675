"""A process that loads bases whose files name paths, and hears of every file that is opened outside (run by a test).

Python's opens are seen by an audit hook, which cannot be removed; those of compiled libraries by inotify, on the folder
that the paths lead to.
"""

import ctypes
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile_values import KEYS, leaves, replaced
from samples import language_base

from task.config import TaskConfig
from task.data.encoding.texts import tokenized, tokenizer_in
from task.data.raw import DataError
from task.models.base import Base, BaseError
from task.models.loading import loaded

CAUSAL = TaskConfig.read({"task.kind": "causal-lm", "model.name": "given", "data.name": "given"})
SETTINGS = ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK
TEMPLATES = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Watch:
    """What is opened while this process is `watching`: outside of the folders that it may read, or in `private`."""

    def __init__(self, private: Path, readable: list[Path]) -> None:
        self.readable, self.watching, self.outside = [str(path) for path in readable], False, list[str]()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(IN_NONBLOCK)
        assert self._libc.inotify_add_watch(self._inotify, str(private).encode(), IN_OPEN) > 0
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if self.watching and event == "open" and isinstance(args[0], str | bytes):
            path = os.path.abspath(os.fsdecode(args[0]))
            if not any(path == place or path.startswith(place + "/") for place in self.readable):
                self.outside.append(path)

    def found(self) -> list[str]:
        """What was opened since this was last asked."""
        try:
            compiled = ["by compiled code"] if os.read(self._inotify, 65536) else []
        except BlockingIOError:
            compiled = []
        opened, self.outside = [*self.outside, *compiled], []
        return opened


def main(folder: Path, values: int, step: int) -> None:
    """Print how many bases were loaded or refused, and what was opened outside."""
    private, base, temp = folder / "private", language_base(folder / "base", TEMPLATES), folder / "temp"
    shutil.copytree(base, private)
    (private / "evil.py").write_text("raise SystemExit('ran')")
    _use(base)
    watch = Watch(private, [base, temp, *_own_places()])
    counts = {"loaded": 0, "refused": 0, "else": 0}
    strange: list[str] = []
    for name, change in itertools.islice(_changes(base, private, values), 0, None, step):
        whole = (base / name).read_bytes() if (base / name).exists() else None
        (base / name).write_text(json.dumps(change))
        watch.watching = True
        try:
            _use(base)
            counts["loaded"] += 1
        except (BaseError, DataError) as error:
            counts["refused"] += 1
            if str(folder) in error.public:
                strange.append(f"{name}: told {error.public}")
        except Exception as error:  # noqa: BLE001  that is what is looked for
            counts["else"] += 1
            strange.append(f"{name}: {type(error).__name__}: {error}")
        watch.watching = False
        if opened := watch.found():
            strange.append(f"{name} {json.dumps(change)[:300]}: opened {opened}")
        (base / name).unlink() if whole is None else (base / name).write_bytes(whole)
    print(json.dumps({**counts, "strange": strange[:20], "noticed": _noticed(watch, private)}))


def _use(base: Path) -> None:
    """All that a node does with a base."""
    tokenizer = tokenizer_in(base)
    ids = tokenized(tokenizer, ["add one and two"])
    model = loaded(Base("given", base, ""), CAUSAL).module
    assert ids
    assert model


def _changes(base: Path, private: Path, values: int) -> Iterator[tuple[str, Any]]:
    """A file of the base and what it holds, with one value that leads outside."""
    hostile = [str(private), "../private", str(private / "tokenizer.json"), "../private/model.safetensors"][:values]
    for name in SETTINGS:
        found = json.loads((base / name).read_text()) if (base / name).exists() else {}
        for key in KEYS:
            yield from ((name, {**found, key: value}) for value in hostile)
            yield name, {**found, key: {"AutoModel": f"{private}--evil.Model", "a": [hostile[0]]}}
    for path in sorted(base.glob("*.json")):
        found = json.loads(path.read_text())
        for place in leaves(found):
            yield from ((path.name, replaced(found, place, value)) for value in hostile)


def _own_places() -> list[Path]:
    places = [sys.prefix, sys.base_prefix, Path(__file__).parents[1], "/proc", "/sys", "/dev/null", "/dev/urandom"]
    return [Path(place).resolve() for place in places] + [Path(sys.prefix)]


def _noticed(watch: Watch, private: Path) -> bool:
    """Whether both ways of opening a file are heard."""
    from safetensors import safe_open

    watch.watching = True
    with (private / "config.json").open():
        pass
    by_python = watch.found()
    with safe_open(private / "model.safetensors", framework="np"):
        pass
    by_compiled = watch.found()
    watch.watching = False
    return str(private / "config.json") in by_python and by_compiled == ["by compiled code"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

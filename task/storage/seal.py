"""Hashes of a folder's files, kept beside them, that find what has rotted on the disk.

They are fast ones: nobody is kept from writing files and hashes of his own. A folder is looked at once a process.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import xxhash

SEAL = ".seal.json"
CHUNK = 2**22  # bytes read at once
_whole: dict[Path, tuple[int, int]] = {}  # folders that this process has found whole: inode and time of their seals


def write(folder: Path, source: str = "") -> None:
    """Keep size and hash of every file of a folder, and what it was made from."""
    files = {path.name: [path.stat().st_size, _hash(path)] for path in _files(folder)}
    draft = folder / f"{SEAL}.part"
    draft.write_text(json.dumps({"from": source, "made": time.time(), "files": files}), encoding="utf-8")
    os.replace(draft, folder / SEAL)


def sealed(folder: Path) -> bool:
    """Return whether there are hashes of a folder; an earlier version wrote none."""
    return (folder / SEAL).exists()


def about(folder: Path) -> dict[str, Any]:
    """Return what was kept of a folder: `from`, `made`, `files`; nothing where it cannot be read."""
    try:
        found = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def problem(folder: Path) -> str:
    """Return what is wrong with a folder's files, in a sentence; empty where they are as they were written."""
    try:
        found = (folder / SEAL).stat()
    except OSError:
        return f"{folder} has no hashes of its files, as an earlier version left it"
    stamp = (found.st_ino, found.st_mtime_ns)
    if _whole.get(folder) == stamp:
        return ""
    try:
        said = _problem(folder)
    except FileNotFoundError as error:
        return f"{error.filename} was removed while it was looked at"
    if not said:
        _whole[folder] = stamp
    return said


def _problem(folder: Path) -> str:
    files = about(folder).get("files")
    if not isinstance(files, dict):
        return f"{folder / SEAL} is damaged: it holds no hashes"
    there = {path.name: path for path in _files(folder)}
    for name in sorted(files.keys() ^ there.keys()):
        return f"{folder / name} is {'missing' if name in files else 'none of the files that were written there'}"
    for name, path in there.items():
        size, expected = files[name]
        if path.stat().st_size != size:
            return f"{path} is damaged: it has {path.stat().st_size} bytes, and {size} were written"
        if _hash(path) != expected:
            return f"{path} is damaged: its bytes are not those that were written"
    return ""


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(SEAL))


def _hash(path: Path) -> str:
    hashed, buffer = xxhash.xxh3_128(), bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hashed.update(memoryview(buffer)[:count])
    return hashed.hexdigest()

"""Hashes of a folder's files, stored with them, to detect files damaged on the disk.

They are fast, not cryptographic: they do not stop anybody from writing other files and hashes. A folder is checked
once per process.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import xxhash

SEAL = ".seal.json"
CHUNK = 2**22  # bytes read at once
_whole: dict[Path, tuple[int, int]] = {}  # folders found whole by this process: inode and time of their seals


def write(folder: Path, source: str = "") -> None:
    """Write the size and hash of every file of a folder, and what it was made from."""
    files = {path.name: [path.stat().st_size, _hash(path)] for path in _files(folder)}
    draft = folder / f"{SEAL}.part"
    draft.write_text(json.dumps({"from": source, "made": time.time(), "files": files}), encoding="utf-8")
    os.replace(draft, folder / SEAL)


def sealed(folder: Path) -> bool:
    """Return whether a folder has hashes; an earlier version wrote none."""
    return (folder / SEAL).exists()


def about(folder: Path) -> dict[str, Any]:
    """Return what is recorded of a folder: `from`, `made`, `files`; empty if it cannot be read."""
    try:
        found = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def problem(folder: Path) -> str:
    """Return the problem of a folder's files, in a sentence; empty if they are as written."""
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
        return f"{folder / SEAL} is damaged: it has no hashes"
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

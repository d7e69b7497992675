"""Git LFS pointers, which a clone without Git LFS has in place of its large files."""

from pathlib import Path

FIRST = b"version https://git-lfs.github.com/spec/"
LARGEST = 1024  # bytes of a pointer, by its specification
CURE = "it is only a Git LFS pointer, a clone without the file itself; run 'git lfs pull' in its folder"


def is_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer. Raises OSError if it cannot be read."""
    if path.stat().st_size > LARGEST:
        return False
    with path.open("rb") as file:
        return file.read(len(FIRST)) == FIRST

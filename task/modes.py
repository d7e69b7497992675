"""File modes: a file that a library wrote gets the mode of its folder. Some libraries set modes of their own."""

from pathlib import Path

READ_AND_WRITE = 0o666


def as_the_folder(place: Path) -> None:
    """Give a file, or every file below a folder, the mode of its parent folder."""
    for path in [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]:
        path.chmod(path.parent.stat().st_mode & READ_AND_WRITE)

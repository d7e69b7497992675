"""Who may read a file that a library wrote: whoever may read the folder. Some write with modes of their own."""

from pathlib import Path

READ_AND_WRITE = 0o666


def as_the_folder(place: Path) -> None:
    """Give a file, or every file below a folder, the mode of the folder that it lies in."""
    for path in [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]:
        path.chmod(path.parent.stat().st_mode & READ_AND_WRITE)

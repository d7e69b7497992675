"""The error for a full disk: the folder without room, and what to do."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, no larger file
GIGABYTE = 1e9


class NoRoom(RuntimeError):
    """A full disk. The message is one sentence that names the folder."""

    public = "there is no room left on a disk"


def is_full(error: BaseException) -> bool:
    """Return whether the error says that there is no room."""
    if isinstance(error, SafetensorError):  # raised from Rust, with the error number in its text
        said = re.search(r"os error (\d+)", str(error))
        return said is not None and int(said[1]) in FULL
    return isinstance(error, OSError) and error.errno in FULL


def sentence(error: BaseException, place: Path) -> str:
    """Return the message for a full disk: the folder of the error (else `place`), and the free space there."""
    name = getattr(error, "filename", None)
    folder = Path(name).parent if isinstance(name, str) else place
    try:
        free = f", {shutil.disk_usage(folder).free / GIGABYTE:.2f} GB are free there"
    except OSError:
        free = ""
    return (
        f"there is no room left for files in {folder}{free}: free some (`thistledown purge` says what stores keep), "
        f"then try again, or go on with `resume`"
    )


def append(file: FileIO, text: str) -> None:
    """Append all of a text to an unbuffered file, or nothing."""
    size = file.seek(0, os.SEEK_END)
    left = text.encode()
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        file.truncate(size)
        raise


@contextmanager
def room(place: Path) -> Iterator[None]:
    """Raise NoRoom for a full disk within this block. `place` is named if the error names no file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise NoRoom(sentence(error, place)) from error

"""What is said where a disk is full: which folder there is no room in, and what to do."""

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
    """A disk that is full; the message is one sentence that names the folder."""

    public = "there is no room left on a disk"


def is_full(error: BaseException) -> bool:
    """Return whether the error says that there is no room."""
    if isinstance(error, SafetensorError):  # it is written by Rust, which has the number in its text
        said = re.search(r"os error (\d+)", str(error))
        return said is not None and int(said[1]) in FULL
    return isinstance(error, OSError) and error.errno in FULL


def sentence(error: BaseException, place: Path) -> str:
    """Return what to tell of an error for which `is_full`: where it happened (else `place`), how much is free there."""
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
    """Append all of a text to an unbuffered file, or nothing of it."""
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
    """Within this, a full disk raises NoRoom; `place` is named where the error names no file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise NoRoom(sentence(error, place)) from error

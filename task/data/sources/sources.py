"""Where rows come from: the embedded digits, local files and folders, or a dataset of the hub.

`open_source` looks only at names and files; `read_split` loads one split, as arrays or as a table, and of a table only
the columns that are needed. No reader unpickles or runs code that comes with data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from task.config import EMBEDDED_DATA
from task.data.raw import Arrays, DataError, Raw, lacks
from task.data.request import Reading, Source
from task.data.sources.digits import PARTS, digits_part
from task.data.sources.files import Files
from task.data.sources.folders import open_folder
from task.data.sources.npz import Npz
from task.data.sources.saved import Loaded
from task.data.tables.decoding import PACKED
from task.data.tables.tables import OTHERS, READERS, kind_of, refusal

__all__ = ["DIGITS_STRETCH", "Digits", "Source", "open_source", "read_split", "unreadable"]

DIGITS_STRETCH = 15


def open_source(name: str, subset: str = "", train_split: str = "train", public: str = "") -> Source:
    """Return what `data.name` or a node's `data-path` means.

    Raises DataError for what does not exist or may not be read; others hear `public`, or that the name cannot be read.
    """
    if name == EMBEDDED_DATA:
        return Digits()
    if not name.strip():
        raise DataError("data.name is empty; name a file, a folder or a dataset of the hub", "data.name is empty")
    path, public = Path(name).expanduser(), public or unreadable(name)
    try:
        if path.is_dir():
            return open_folder(path.resolve(), subset, train_split)
        if path.is_file():
            return _file(path.resolve())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", public) from error
    kinds = (*READERS, *PACKED, *OTHERS, ".npz")
    if path.suffix.lower() in kinds or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise DataError(f"there is no file or folder {path.absolute()}", public)
    return Loaded(name, subset, public=public)


def unreadable(name: str) -> str:
    """Return what may be said of data that an order names: the same whether there is such a file or not."""
    return f"data.name = '{name:.80}' cannot be read here"


def read_split(source: Source, split: str, reading: Reading) -> Raw:
    """Return the rows of a split. Raises DataError where it does not exist, lacks a column or is empty."""
    if split not in source.splits():
        advice = "; leave data.test-split empty to cut test rows from train" if split == "test" else ""
        public = f"there is no split '{split}'"
        raise DataError(f"{source.name} {lacks('split', split, source.splits())}{advice}", public)
    raw = source.load(split, reading)
    for column, key in reading.required.items():
        raw.require(column, key)
    if not len(raw):
        raise DataError(f"{raw.place} has no rows", "there are no rows")
    return raw


@dataclass(frozen=True)
class Digits:
    """The embedded digits, stretched from 0..16 to 0..240 so that resizing keeps their shades."""

    name: str = "the embedded digits"

    def stamp(self) -> object:
        """Return the same for ever: the digits do not change."""
        return "digits, first edition"

    def splits(self) -> Sequence[str]:
        """Return the names of their parts."""
        return tuple(PARTS)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return a part."""
        images, labels = digits_part(split)
        return Arrays(f"{self.name} ({split})", images * np.uint8(DIGITS_STRETCH), labels)


def _file(path: Path) -> Source:
    if path.suffix.lower() == ".npz":
        return Npz(path)
    if kind_of(path):
        return Files(path, {"train": (path,)})
    raise refusal(path)

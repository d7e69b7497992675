"""Where rows come from: the embedded digits, local files and folders, or a dataset of the hub.

`open_source` looks only at names and files; `read` loads one split, as arrays or as a table. No reader
unpickles or runs code that comes with data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from task.config import EMBEDDED_DATA
from task.digits import PARTS, digits_part
from task.raw import HIDDEN, Arrays, DataError, Raw, Table, lacks
from task.tables import READERS


class Source(Protocol):
    """Something with named splits."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def stamp(self) -> object:
        """What changes when the data changes, as far as that can be seen without reading it."""

    def splits(self) -> Sequence[str]:
        """The splits that exist."""

    def load(self, split: str) -> Raw:
        """The rows of an existing split."""


def open_source(name: str, subset: str = "", train_split: str = "train") -> Source:
    """What `data.name` or a node's `data-path` means; DataError for a file that does not exist."""
    if name == EMBEDDED_DATA:
        return Digits()
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path.resolve(), subset, train_split)
    if path.is_file():
        return _file(path.resolve())
    if path.suffix.lower() in (*READERS, ".npz") or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise DataError(f"there is no file or folder {path.absolute()}", unreadable(name))
    return Loaded(name, subset)


def unreadable(name: str) -> str:
    """What may be said of data that an order names: the same whether there is such a file or not."""
    return f"data.name = '{name:.80}' cannot be read here"


def read_split(source: Source, split: str) -> Raw:
    """The rows of a split; DataError where it does not exist or is empty."""
    if split not in source.splits():
        advice = "; leave data.test-split empty to cut test rows from train" if split == "test" else ""
        public = f"there is no split '{split}'"
        raise DataError(f"{source.name} {lacks('split', split, source.splits())}{advice}", public)
    raw = source.load(split)
    if not len(raw):
        raise DataError(f"{raw.place} has no rows", "there are no rows")
    return raw


DIGITS_STRETCH = 15


@dataclass(frozen=True)
class Digits:
    """The embedded digits, stretched from 0..16 to 0..240 so that resizing keeps their shades."""

    name: str = "the embedded digits"

    def stamp(self) -> object:
        return "digits, first edition"

    def splits(self) -> Sequence[str]:
        return tuple(PARTS)

    def load(self, split: str) -> Raw:
        images, labels = digits_part(split)
        return Arrays(f"{self.name} ({split})", images * np.uint8(DIGITS_STRETCH), labels)


@dataclass(frozen=True)
class Npz:
    """Arrays named x_<split> and y_<split>, or `images` and `labels`, which are the split `train`."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def stamp(self) -> object:
        return _stamps([self.path])

    def splits(self) -> Sequence[str]:
        return tuple(self._keys)

    def load(self, split: str) -> Raw:
        place, (images, labels) = f"{self.path} ({split})", self._keys[split]
        with self._open() as arrays:
            try:
                pixels, targets = arrays[images], arrays[labels]
            except ValueError as error:  # arrays of Python objects, which only unpickling could read
                raise DataError(f"{self.path} cannot be read: {error}") from error
        if targets.ndim != 1 or len(pixels) != len(targets):
            shapes = f"'{images}' {pixels.shape} and '{labels}' {targets.shape}"
            raise DataError(f"{place}: {shapes} do not hold one label for every image")
        return Arrays(place, pixels, targets)

    @cached_property
    def _keys(self) -> dict[str, tuple[str, str]]:
        with self._open() as arrays:
            names = list(arrays.files)
        pairs = {name[2:]: (name, f"y_{name[2:]}") for name in names if name.startswith("x_")}
        pairs = {split: pair for split, pair in pairs.items() if pair[1] in names}
        if not pairs and {"images", "labels"} <= set(names):
            pairs = {"train": ("images", "labels")}
        if not pairs:
            have = ", ".join(map(repr, names)) or "no arrays"
            raise DataError(f"{self.path} holds {have}; it needs x_train and y_train, or images and labels")
        return pairs

    def _open(self) -> Any:
        try:
            opened = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{self.path} is not an npz file: {error}", "the data is not of the kind that its name says"
            ) from error
        if not hasattr(opened, "files"):
            raise DataError(f"{self.path} is not an npz file, but a single array")
        return opened


@dataclass(frozen=True)
class Files:
    """One table file a split."""

    place: Path
    files: dict[str, Path]

    @property
    def name(self) -> str:
        return str(self.place)

    def stamp(self) -> object:
        return _stamps(list(self.files.values()))

    def splits(self) -> Sequence[str]:
        return tuple(self.files)

    def load(self, split: str) -> Raw:
        path = self.files[split]
        return Table(str(path), READERS[path.suffix.lower()](path), path.parent)


@dataclass(frozen=True)
class Loaded:
    """What `datasets.load_dataset` understands: a hub id, or a folder such as one of images."""

    place: str
    subset: str = ""
    folder: Path | None = None

    @property
    def name(self) -> str:
        return self.place + (f" ({self.subset})" if self.subset else "")

    def stamp(self) -> object:
        """Files of a folder. A hub dataset is taken to stay as it was when it was first read."""
        if self.folder is None:
            return [self.place, self.subset]
        return [self.subset, _stamps(sorted(path for path in self.folder.rglob("*") if path.is_file()))]

    def splits(self) -> Sequence[str]:
        return tuple(self._splits)

    def load(self, split: str) -> Raw:
        return Table(f"{self.name} ({split})", self._splits[split], self.folder)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        import datasets

        if self.place in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # readers, one of them of pickles
            raise DataError(f"'{self.place}' is a kind of file, not a dataset; name the file")
        try:
            return dict(datasets.load_dataset(self.place, self.subset or None))
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            kind = "a dataset of the hub, nor a local file or folder" if self.folder is None else "data"
            public = HIDDEN if self.folder else unreadable(self.place)
            raise DataError(f"{self.name} cannot be read as {kind}: {error}", public) from error


def _file(path: Path) -> Source:
    if path.suffix.lower() == ".npz":
        return Npz(path)
    if path.suffix.lower() in READERS:
        return Files(path, {"train": path})
    raise DataError(f"{path} is none of the kinds of file that can be read: {', '.join(READERS)}, .npz")


def _folder(path: Path, subset: str, train_split: str) -> Source:
    """Files named after splits go first, then a single npz; the rest is for `datasets` to make out."""
    tables = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS}
    arrays = sorted(path.glob("*.npz"))
    if train_split in tables:
        return Files(path, tables)
    if not tables and len(arrays) == 1:
        return Npz(arrays[0])
    return Loaded(str(path), subset, path)


def _stamps(paths: list[Path]) -> list[tuple[str, int, int]]:
    return [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in paths]

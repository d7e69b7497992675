"""The base classes of sources: anything with rows in named splits, and files of tables."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import ClassVar

from task.data.raw import DataError, Raw, Table, lacks
from task.data.request import Reading
from task.data.splits import SHARD, TRAIN
from task.data.tables.columns import typed
from task.data.tables.decoding import PACKED, unpacked_name
from task.data.tables.joining import joined
from task.files.pointer import CURE, is_pointer


class Order(IntEnum):
    """The order in which sources are asked whether they know a folder. The first that does opens it; two sources of the
    same order are an error. From SPLITS on, `data.subset` is a folder inside."""

    MARKED = 1  # a file in it names the program that wrote it
    DESCRIBED = 2  # a card in it describes its files
    SPLITS = 3  # its files, or folders of files, are the splits
    FILE = 4  # one file in it has all splits
    CONTENTS = 5  # a file of the source's kind is anywhere in it


@dataclass(frozen=True)
class Place:
    """The value of `data.name` or of a node's `data-path`. `path` is the file or folder; None: it does not exist.

    `train_split` is the split to train on. If the place cannot be read, other machines get the message `public`.
    """

    name: str
    path: Path | None = None
    subset: str = ""
    train_split: str = TRAIN
    public: str = ""


@dataclass(frozen=True)
class Source(ABC):
    """A source of named splits. It declares what it recognises: values of `data.name`, file endings, folders."""

    keywords: ClassVar[
        tuple[str, ...]
    ] = ()  # values of `data.name` that always mean this source, whatever is on the disk
    suffixes: ClassVar[tuple[str, ...]] = ()  # endings of the files that it opens, such as ".npz"
    order: ClassVar[Order | None] = None  # its turn to be asked about a folder; None: never
    fallback: ClassVar[bool] = False  # opens what no other source knows: names that are not paths, and folders

    @classmethod
    def knows(cls, folder: Path) -> bool:
        """Return whether it opens this folder. Called in `order`."""
        return False

    @classmethod
    @abstractmethod
    def open(cls, place: Place) -> "Source":
        """Return the source at a place that it recognises. Raises DataError if it cannot be read."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return its name in errors."""

    @abstractmethod
    def stamp(self) -> object:
        """Return JSON values that change with the data, as far as can be seen without reading it."""

    @abstractmethod
    def splits(self) -> Sequence[str]:
        """Return the splits that exist."""

    @abstractmethod
    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows of an existing split, with the columns that `reading` wants. Raises DataError."""


@dataclass(frozen=True)
class TableFile(Source):
    """A file of rows with named columns. Alone it is the split `train`; in a folder it is a split or part of one."""

    packable: ClassVar[bool] = False  # may be compressed, such as rows.csv.gz
    untyped: ClassVar[bool] = False  # cells are texts; the types of columns follow from all files of a split

    path: Path

    @classmethod
    @abstractmethod
    def read(cls, path: Path, suffix: str, reading: Reading) -> Table:
        """Return the rows; `suffix` is the file's ending, one of `suffixes`. Raises DataError."""

    @classmethod
    def open(cls, place: Place) -> "TableFile":
        """Return the file."""
        assert place.path is not None
        return cls(place.path)

    @property
    def name(self) -> str:
        """Return the path."""
        return str(self.path)

    @property
    def suffix(self) -> str:
        """Return the ending that decides how it is read, in lower case: ".csv" for rows.CSV.gz."""
        return unpacked_name(self.path).suffix.lower()

    @property
    def stem(self) -> str:
        """Return its name without endings."""
        path = Path(self.path.stem)
        packed = self.path.suffix.lower() in PACKED and path.suffix.lower() in self.suffixes
        return path.stem if packed else self.path.stem

    def stamp(self) -> object:
        """Return name, size and time of the file."""
        return stamps([self.path])

    def splits(self) -> Sequence[str]:
        """Return `train`."""
        return (TRAIN,)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows."""
        return load_files(self.path, split, [self], reading)


@dataclass(frozen=True)
class FolderSource(Source):
    """A folder that is one source as a whole. A subclass recognises it (`knows`) and reads it (`splits`, `load`)."""

    folder: Path

    @classmethod
    def open(cls, place: Place) -> "FolderSource":
        """Return the folder."""
        assert place.path is not None
        return cls(place.path)

    @property
    def name(self) -> str:
        """Return its name in errors."""
        return str(self.folder)

    def stamp(self) -> object:
        """Return names, sizes and times of the files."""
        return stamps_inside(self.folder)


def load_files(place: Path, split: str, files: Sequence[TableFile], reading: Reading) -> Table:
    """Return the rows of a split in `place`, from one file or several in turn.

    Raises DataError for a split with two files or a missing shard.
    """
    _check_shards(place, split, files)
    for file in files:
        if is_pointer(file.path):
            raise DataError(f"{file.path}: {CURE}", "a file of the data is only a Git LFS pointer")
    table = joined([file.read(file.path, file.suffix, reading) for file in files], reading)
    return typed(table) if all(file.untyped for file in files) else table


def read_cells(file: TableFile, reading: Reading) -> Table:
    """Return the rows of one file with cells as they are written: texts stay texts, such as 1.50. Raises DataError if a
    required column is missing, and if there are no rows."""
    if is_pointer(file.path):
        raise DataError(f"{file.path}: {CURE}", "a file of the data is only a Git LFS pointer")
    table = file.read(file.path, file.suffix, reading)
    _check(table, reading)
    return table


def _check_shards(place: Path, split: str, files: Sequence[TableFile]) -> None:
    """Raise DataError unless several files of one split are all its shards."""
    shards = [SHARD.fullmatch(file.stem) for file in files]
    if any(shard is None for shard in shards):
        alone = len(files) == 1 or not any(file.stem.casefold() == split.casefold() for file in files)
        if alone and not any(shards):  # parts in a folder with the name of the split
            return
    counts = {int(shard["count"]) for shard in shards if shard}
    numbers = {int(shard["number"]) for shard in shards if shard}
    kinds = {file.path.name.removeprefix(file.stem) for file in files}
    if None in shards or len(counts) > 1 or len(kinds) > 1 or len(numbers) < len(files):
        named = sorted(file.path.name for file in files)
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        problem = "several files are of one split"
        said = (
            f"{place}: {problem}, '{split}': {', '.join(named[:5])}{more}; keep one of them, or name a file by itself"
        )
        raise DataError(said, problem)
    if counts and len(numbers) < max(counts):
        missing = sorted(set(range(max(counts))) - numbers)[:5]
        problem = "shards of a split are missing"
        raise DataError(f"{place}: {problem}, '{split}': {missing} of {max(counts)}", problem)


def read_split(source: Source, split: str, reading: Reading) -> Raw:
    """Return the rows of a split. Raises DataError if it does not exist, lacks a column or is empty."""
    if split not in source.splits():
        advice = "; leave data.test-split empty to cut test rows from train" if split == "test" else ""
        public = f"there is no split '{split}'"
        raise DataError(f"{source.name} {lacks('split', split, source.splits())}{advice}", public)
    raw = source.load(split, reading)
    _check(raw, reading)
    return raw


def _check(raw: Raw, reading: Reading) -> None:
    """Raise DataError if a required column is missing, and if there are no rows."""
    for column, key in reading.required.items():
        raw.require(column, key)
    if not len(raw):
        raise DataError(f"{raw.place} has no rows", "there are no rows")


def stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of every file."""
    return [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in paths]


def stamps_inside(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of every file in a folder and its subfolders."""
    return stamps(sorted(path for path in folder.rglob("*") if path.is_file()))

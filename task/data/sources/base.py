"""What a source is: something that rows come from, with named splits; and what files of tables have in common."""

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
    """When a source is asked whether it knows a folder. The first that does opens it; two of one order that both do are
    an error. `data.subset` is a folder inside for those from SPLITS on."""

    MARKED = 1  # a file in it says which program wrote it
    DESCRIBED = 2  # a card in it says how its files are read
    SPLITS = 3  # its files, or folders of files, are the splits
    FILE = 4  # one file in it holds all splits
    CONTENTS = 5  # something of the source's kind lies anywhere in it


@dataclass(frozen=True)
class Place:
    """What `data.name` or a node's `data-path` says. `path` is the file or folder; None: there is none of this name.

    `train_split` is the split that is trained on. Where the place cannot be read, other machines get `public`.
    """

    name: str
    path: Path | None = None
    subset: str = ""
    train_split: str = TRAIN
    public: str = ""


@dataclass(frozen=True)
class Source(ABC):
    """Something with named splits. What it recognises is declared: values of `data.name`, endings of files, folders."""

    keywords: ClassVar[tuple[str, ...]] = ()  # values of `data.name` that are this source, whatever lies on the disk
    suffixes: ClassVar[tuple[str, ...]] = ()  # of the files that it opens, such as ".npz"
    order: ClassVar[Order | None] = None  # when it is asked about a folder; None: never
    fallback: ClassVar[bool] = False  # opens what no source knows: names that are no path, and folders

    @classmethod
    def knows(cls, folder: Path) -> bool:
        """Return whether it opens this folder. Asked in `order`."""
        return False

    @classmethod
    @abstractmethod
    def open(cls, place: Place) -> "Source":
        """Return the source at a place that it recognises. Raises DataError where it cannot be read."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call it."""

    @abstractmethod
    def stamp(self) -> object:
        """Return JSON values that change when the data changes, as far as that can be seen without reading it."""

    @abstractmethod
    def splits(self) -> Sequence[str]:
        """Return the splits that exist."""

    @abstractmethod
    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows of an existing split, with the columns that `reading` wants. Raises DataError."""


@dataclass(frozen=True)
class TableFile(Source):
    """A file of rows with named columns. By itself it is the split `train`; in a folder it is one split, or a part."""

    packable: ClassVar[bool] = False  # may be packed, as rows.csv.gz is
    untyped: ClassVar[bool] = False  # cells are texts; which columns are numbers follows from all files of a split

    path: Path

    @classmethod
    @abstractmethod
    def read(cls, path: Path, suffix: str, reading: Reading) -> Table:
        """Return the rows; `suffix` is the one of `suffixes` that the file has. Raises DataError."""

    @classmethod
    def open(cls, place: Place) -> "TableFile":
        """Return the file."""
        assert place.path is not None
        return cls(place.path)

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def suffix(self) -> str:
        """The ending that decides how it is read, in lower case: ".csv" of rows.CSV.gz."""
        return unpacked_name(self.path).suffix.lower()

    @property
    def stem(self) -> str:
        """Its name without endings."""
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


def load_files(place: Path, split: str, files: Sequence[TableFile], reading: Reading) -> Table:
    """Return the rows of a split in `place`: of one file, or of several one after another.

    Raises DataError for a split that two files claim, or of which a shard is missing.
    """
    _check_shards(place, split, files)
    for file in files:
        if is_pointer(file.path):
            raise DataError(f"{file.path}: {CURE}", "a file of the data is only a Git LFS pointer")
    table = joined([file.read(file.path, file.suffix, reading) for file in files], reading)
    return typed(table) if all(file.untyped for file in files) else table


def _check_shards(place: Path, split: str, files: Sequence[TableFile]) -> None:
    """Raise DataError unless several files of one name are all shards that there are."""
    shards = [SHARD.fullmatch(file.stem) for file in files]
    if any(shard is None for shard in shards):
        alone = len(files) == 1 or not any(file.stem.casefold() == split.casefold() for file in files)
        if alone and not any(shards):  # parts of a folder that is called like the split
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


def stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of every file."""
    return [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in paths]


def stamps_inside(folder: Path) -> list[tuple[str, int, int]]:
    """Return those of every file in a folder and its folders."""
    return stamps(sorted(path for path in folder.rglob("*") if path.is_file()))

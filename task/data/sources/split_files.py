"""A folder of tables: each split is one file, its shards, or a folder of files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from task.data.raw import Raw
from task.data.request import Reading
from task.data.sources import registry
from task.data.sources.base import Order, Place, Source, TableFile, load_files, stamps
from task.data.sources.image_folder import TABLES
from task.data.splits import TRAIN, called, split_of, usual
from task.data.tables.decoding import hidden

NOTES = ("dataset_info.json", "state.json")
WORDS = re.compile(r"[-_. ()\d]+")
Splits = dict[str, tuple[TableFile, ...]]


@dataclass(frozen=True)
class SplitFiles(Source):
    """The files of every split. A split with several files that are not shards is not read."""

    order = Order.SPLITS

    place: Path
    files: Splits
    notices: tuple[str, ...] = ()

    @classmethod
    def knows(cls, folder: Path) -> bool:
        """Return whether it has tables, directly, in `data`, or in folders named like splits."""
        return bool(_by_split(folder))

    @classmethod
    def open(cls, place: Place) -> "SplitFiles":
        """Return the splits: by file names, else by words in file names, else all files as `train`."""
        assert place.path is not None
        files = _by_split(place.path)
        if called(place.train_split, files, str(place.path)):
            return cls(place.path, files)
        return _without_train(place.path, files)

    @property
    def name(self) -> str:
        """Return its name in errors."""
        return str(self.place)

    def stamp(self) -> object:
        """Return names, sizes and times of the files."""
        return stamps([file.path for files in self.files.values() for file in files])

    def splits(self) -> Sequence[str]:
        """Return the splits that exist."""
        return tuple(self.files)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows of a split. Raises DataError for a split with two files or a missing shard."""
        table = load_files(self.place, split, self.files[split], reading)
        return replace(table, notices=(*self.notices, *table.notices))


def _by_split(folder: Path) -> Splits:
    """Return the tables of a folder by split: files by name, here or in `data`, else the files of folders named like
    splits."""
    for place in (folder, folder / "data"):
        if files := _tables(place):
            found: Splits = {}
            for file in files:
                split = split_of(file.stem)
                found[split] = (*found.get(split, ()), file)
            return found
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not hidden(path.name)]
    return {path.stem: files for path in inside if usual(path.stem) and (files := _tables(path))}


def _tables(folder: Path) -> tuple[TableFile, ...]:
    """Return the tables in a folder, except those that describe images."""
    if not folder.is_dir():
        return ()
    inside = (path for path in sorted(folder.iterdir()) if path.is_file() and not hidden(path.name))
    found = (registry.table_file(path) for path in inside if path.name not in TABLES and not _is_note(path))
    return tuple(file for file in found if file)


def _is_note(path: Path) -> bool:
    """Return whether a file is about the data rather than rows: LICENSE.txt, readme.txt, dataset_info.json."""
    return path.name in NOTES or (path.suffix.lower() == ".txt" and not usual(split_of(path.stem)))


def _without_train(folder: Path, files: Splits) -> SplitFiles:
    """Return the splits of a folder without a file named like the train split.

    Each file's split is a word in its name, such as train in news-train.csv. If no name has such a word, all files are
    the train split.
    """
    words = {split: [word for word in WORDS.split(split) if usual(word)] for split in files}
    kinds = {file.suffix for found in files.values() for file in found}
    hinted = any(part in split.casefold() for split in files for part in ("train", "test"))  # TrainRows.csv
    if len(files) == 1 or (not any(words.values()) and not hinted and len(kinds) == 1):
        every = tuple(file for found in files.values() for file in found)
        said = (f"{folder}: all {len(every)} files are read as the split '{TRAIN}'",) if len(every) > 1 else ()
        return SplitFiles(folder, {TRAIN: every}, said)
    if any(len(found) != 1 for found in words.values()):
        return SplitFiles(folder, files)
    grouped: Splits = {}
    for split, found in files.items():
        grouped[words[split][0]] = (*grouped.get(words[split][0], ()), *found)
    seen = (f"'{split}' is {', '.join(file.path.name for file in found[:3])}" for split, found in grouped.items())
    return SplitFiles(folder, grouped, (f"{folder}: splits are known by words in names of files: {'; '.join(seen)}",))

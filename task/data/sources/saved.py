"""Sources that `datasets` reads: folders that it saved, and whatever `load_dataset` understands."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from task.data.raw import HIDDEN, DataError, Raw, Table
from task.data.request import Reading
from task.data.sources.files import stamps_inside

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what marks a folder as saved
UNKNOWN = "data.name cannot be read here"


@dataclass(frozen=True)
class Saved:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""

    folder: Path

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.folder)

    def stamp(self) -> object:
        """Return names, sizes and times of the files."""
        return stamps_inside(self.folder)

    def splits(self) -> Sequence[str]:
        """Return the splits that were saved; `train` of a single data set without a name."""
        return tuple(self._splits)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows of a split, as they are stored."""
        return table_of(f"{self.folder} ({split})", self._splits[split], self.folder, reading)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        import datasets

        try:
            found = datasets.load_from_disk(str(self.folder))
        except Exception as error:  # its files are JSON and arrow, and it raises what it stumbles on
            problem = "a folder that datasets saved cannot be read"
            raise DataError(f"{self.folder}: {problem}: {error}", problem) from error
        if isinstance(found, datasets.DatasetDict):
            return {str(split): rows for split, rows in found.items()}
        return {str(found.split or "train"): found}


@dataclass(frozen=True)
class Loaded:
    """What `datasets.load_dataset` understands: a hub id, or a folder with a dataset card."""

    place: str
    subset: str = ""
    folder: Path | None = None
    public: str = UNKNOWN

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.place + (f" ({self.subset})" if self.subset else "")

    def stamp(self) -> object:
        """Return the files of a folder. A hub dataset is taken to stay as it was when it was first read."""
        if self.folder is None:
            return [self.place, self.subset]
        return [self.subset, stamps_inside(self.folder)]

    def splits(self) -> Sequence[str]:
        """Return the splits that exist."""
        return tuple(self._splits)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows of a split."""
        return table_of(f"{self.name} ({split})", self._splits[split], self.folder, reading)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        import datasets

        if self.place in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # readers, one of them of pickles
            raise DataError(f"'{self.place}' is a kind of file, not a dataset; name the file")
        try:
            return dict(datasets.load_dataset(self.place, self.subset or None))
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            kind = "a dataset of the hub, nor a local file or folder" if self.folder is None else "data"
            raise DataError(
                f"{self.name} cannot be read as {kind}: {error}", HIDDEN if self.folder else self.public
            ) from error


def table_of(place: str, dataset: Any, folder: Path | None, reading: Reading) -> Table:
    """Return the columns of a data set that are read, as they are stored, whatever format it was saved with."""
    names = tuple(dataset.column_names)
    picked = dataset.with_format(None).select_columns(reading.wanted(names))
    return replace(Table(place, picked, folder), names=names)

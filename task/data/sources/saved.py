"""Folders that `datasets` saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from task.data.raw import DataError, Raw
from task.data.request import Reading
from task.data.sources.base import FolderSource, Order
from task.data.tables.columns import table_of

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # the files that show a saved folder


@dataclass(frozen=True)
class Saved(FolderSource):
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""

    order = Order.MARKED

    @classmethod
    def knows(cls, folder: Path) -> bool:
        """Return whether `datasets` saved it."""
        return (folder / SAVED_SPLITS).is_file() or (folder / SAVED).is_file()

    def splits(self) -> Sequence[str]:
        """Return the saved splits; `train` for a single data set without a name."""
        return tuple(self._splits)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows of a split, as stored."""
        return table_of(f"{self.folder} ({split})", self._splits[split], self.folder, reading)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        import datasets

        try:
            found = datasets.load_from_disk(str(self.folder))
        except Exception as error:  # its files are JSON and arrow, and the reader raises errors of many types
            problem = "a folder that datasets saved cannot be read"
            raise DataError(f"{self.folder}: {problem}: {error}", problem) from error
        if isinstance(found, datasets.DatasetDict):
            return {str(split): rows for split, rows in found.items()}
        return {str(found.split or "train"): found}

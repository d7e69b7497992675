"""Data that `datasets.load_dataset` reads: a dataset of the hub, or a folder with a dataset card."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from task.data.raw import HIDDEN, DataError, Raw
from task.data.request import Reading
from task.data.sources.base import Order, Place, Source, stamps_inside
from task.data.tables.columns import table_of

CARDS = ("README.md", "dataset_infos.json")
SAYS = ("configs:", "dataset_info:")  # keys of a card that describe the files
UNKNOWN = "data.name cannot be read here"


@dataclass(frozen=True)
class Hub(Source):
    """A hub id, a folder with a dataset card, or a folder that no other source knows."""

    order = Order.DESCRIBED
    fallback = True

    place: str
    subset: str = ""
    folder: Path | None = None
    public: str = UNKNOWN

    @classmethod
    def knows(cls, folder: Path) -> bool:
        """Return whether a card describes the files or the names of labels."""
        return _has_card(folder)

    @classmethod
    def open(cls, place: Place) -> "Hub":
        """Return the folder, or the dataset of this id."""
        if place.path is None:
            return cls(place.name, place.subset, public=place.public)
        return cls(str(place.path), place.subset, place.path)

    @property
    def name(self) -> str:
        """Return its name in errors."""
        return self.place + (f" ({self.subset})" if self.subset else "")

    def stamp(self) -> object:
        """Return the stamps of a folder's files. A hub dataset is assumed not to change after its first use."""
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

        if self.place in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # readers of formats, one of pickles
            raise DataError(f"'{self.place}' is a kind of file, not a dataset; name the file")
        try:
            return dict(datasets.load_dataset(self.place, self.subset or None))
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            kind = "a dataset of the hub, nor a local file or folder" if self.folder is None else "data"
            raise DataError(
                f"{self.name} cannot be read as {kind}: {error}", HIDDEN if self.folder else self.public
            ) from error


def _has_card(folder: Path) -> bool:
    card = folder / CARDS[0]
    if (folder / CARDS[1]).is_file():
        return True
    if not card.is_file():
        return False
    with card.open(encoding="utf-8", errors="replace") as lines:
        head = next(lines, "")
        return head.strip() == "---" and any(line.startswith(SAYS) for line in _until_end(lines))


def _until_end(lines: Any) -> Iterator[str]:
    for line in lines:
        if line.strip() == "---":
            return
        yield line

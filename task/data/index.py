"""The data index: everything about the data that needs no model, and its format in the store."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from task.data.rows import mapped


@dataclass(frozen=True)
class Part:
    """Rows of one split: `rows` (N,) are positions in it, `labels` (N,), `ids` (N,) of natural clients; all int64."""

    split: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: NDArray[np.int64]) -> "Part":
        """Return the part with only these rows."""
        ids = None if self.ids is None else self.ids[positions]
        return Part(self.split, self.rows[positions], self.labels[positions], ids)


@dataclass(frozen=True)
class DataIndex:
    """The parts and labels of the data, without its model inputs.

    `key` is its name in the store. `sites` are the names of natural clients, by the numbers in `Part.ids`. `notices`
    are sentences on detected formats and left-out rows. `by_row`: a row has one label, in `Part.labels`; otherwise only
    parts of a row have labels.
    """

    key: str
    labels: tuple[str, ...]
    parts: dict[str, Part]
    sites: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    by_row: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the label names, by the numbers in `Part.labels`; empty if rows have no labels."""
        return self.labels if self.by_row else ()

    @property
    def train(self) -> Part:
        """Return the rows that are divided among nodes."""
        return self.parts["train"]


def write_index(folder: Path, data_index: DataIndex) -> None:
    """Write an index to a folder, one array per file."""
    parts = data_index.parts
    for name, part in parts.items():
        for field in ("rows", "labels", "ids"):
            if (values := getattr(part, field)) is not None:
                np.save(folder / f"{name}-{field}.npy", values)
    splits = {name: part.split for name, part in parts.items()}
    counts = {name: len(part) for name, part in parts.items()}
    words = {"labels": data_index.labels, "sites": data_index.sites, "notices": data_index.notices}
    about = {**words, "splits": splits, "rows": counts, "by-row": data_index.by_row}
    (folder / "index.json").write_text(json.dumps(about))


@lru_cache(maxsize=4)  # used for every message to every simulated node; the data of a key never changes
def read_index(folder: Path, key: str) -> DataIndex:
    """Return the index that `write_index` wrote, mapped into memory."""
    found = json.loads((folder / "index.json").read_text())
    parts = {}
    for name, split in found["splits"].items():
        ids = folder / f"{name}-ids.npy"
        rows, labels = (mapped(folder / f"{name}-{field}.npy") for field in ("rows", "labels"))
        parts[name] = Part(split, rows, labels, mapped(ids) if ids.exists() else None)
    names, sites, notices = (tuple(found[name]) for name in ("labels", "sites", "notices"))
    return DataIndex(key, names, parts, sites, notices, found["by-row"])

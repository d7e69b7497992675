"""The data index: what is known of data without a model, and how the store keeps that."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from task.data.rows import mapped


@dataclass(frozen=True)
class Part:
    """Rows of one split: `rows` (N,) in it, `labels` (N,), `ids` (N,) of natural clients; all int64."""

    split: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: NDArray[np.int64]) -> "Part":
        """Return the part with just these rows."""
        ids = None if self.ids is None else self.ids[positions]
        return Part(self.split, self.rows[positions], self.labels[positions], ids)


@dataclass(frozen=True)
class DataIndex:
    """What is known of the data without a model.

    `key` is its name in the store. `sites` are the names of natural clients, by the numbers in `Part.ids`. `notices`
    are sentences on what was detected, left out or read in one of several ways. `by_row`: a row has one label, which
    `Part.labels` has; else only parts of it have labels.
    """

    key: str
    labels: tuple[str, ...]
    parts: dict[str, Part]
    sites: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    by_row: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels of rows, by the numbers in `Part.labels`; none where rows have none."""
        return self.labels if self.by_row else ()

    @property
    def train(self) -> Part:
        """The rows that are divided among nodes."""
        return self.parts["train"]


def write_index(folder: Path, data_index: DataIndex) -> None:
    """Keep an index in a folder, an array a file."""
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


@lru_cache(maxsize=4)  # every message to every simulated node asks; what is under a key never changes
def read_index(folder: Path, key: str) -> DataIndex:
    """Return what `write_index` kept, mapped into memory."""
    found = json.loads((folder / "index.json").read_text())
    parts = {}
    for name, split in found["splits"].items():
        ids = folder / f"{name}-ids.npy"
        rows, labels = (mapped(folder / f"{name}-{field}.npy") for field in ("rows", "labels"))
        parts[name] = Part(split, rows, labels, mapped(ids) if ids.exists() else None)
    names, sites, notices = (tuple(found[name]) for name in ("labels", "sites", "notices"))
    return DataIndex(key, names, parts, sites, notices, found["by-row"])

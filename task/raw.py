"""Rows as they are found, before anything is made of them: a table, or arrays of images and labels."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIDDEN = "data that cannot be used; only this node's own log says why"


class DataError(ValueError):
    """Data that cannot be used; the message names file, row and column.

    Rows count from 0, without the header. The message may quote what was found. `public` is what may be said to others:
    a kind of problem and names that the order has; nothing that depends on a value, no row, no name of a file.
    """

    def __init__(self, message: str, public: str = HIDDEN) -> None:
        super().__init__(message)
        self.public = public

    @classmethod
    def at(cls, place: str, row: int, column: str, problem: str, seen: str = "") -> "DataError":
        """What is wrong with one value. `problem` is the kind of problem, in words that depend on no value; `seen` ends
        the message and is not public. Neither is the row: who may choose column and labels would learn whose it is."""
        return cls(f"{place}, row {row}, column '{column}': {problem}{seen}", f"column '{column}': {problem}")


@dataclass(frozen=True)
class Arrays:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) and labels (N,), as they lie in memory."""

    place: str
    images: NDArray[Any]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def require(self, column: str) -> None:
        """Arrays have images and labels, whatever these are called elsewhere."""

    def has(self, column: str) -> bool:
        """Never: images and labels are no columns."""
        return False

    def values(self, column: str, rows: NDArray[np.int64] | None = None) -> Iterator[object]:
        """Always a DataError: there is no column of text or of ids."""
        problem = f"images and labels only; there is no column '{column}'"
        raise DataError(f"{self.place} holds {problem}", f"the data holds {problem}")

    def label_values(self, column: str) -> Iterator[object]:
        """The label of every row."""
        return iter(self.labels.tolist())

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Arrays do not name their classes."""
        return None


@dataclass(frozen=True)
class Table:
    """A `datasets.Dataset`. Relative image paths in it start at `folder`; None: paths are not followed."""

    place: str
    dataset: Any
    folder: Path | None

    def __len__(self) -> int:
        return len(self.dataset)

    def require(self, column: str) -> None:
        """DataError unless the table has this column."""
        if not self.has(column):
            public = f"there is no column '{column}'"
            raise DataError(f"{self.place} {lacks('column', column, self.dataset.column_names)}", public)

    def has(self, column: str) -> bool:
        """Is there such a column?"""
        return column in self.dataset.column_names

    def values(self, column: str, rows: NDArray[np.int64] | None = None) -> Iterator[object]:
        """The values of a column in the order of `rows` (None: all), images as they are stored."""
        import datasets

        self.require(column)
        picked = self.dataset.select_columns([column])
        if isinstance(picked.features[column], datasets.Image):
            picked = picked.cast_column(column, datasets.Image(decode=False))
        if rows is not None:
            picked = picked.select(rows)
        for batch in picked.iter(1000):
            yield from batch[column]

    def label_values(self, column: str) -> Iterator[object]:
        """The label of every row, as it is stored."""
        return self.values(column)

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """The names that the column's type gives its numbers, where it does."""
        names = getattr(self.dataset.features[column], "names", None)
        return tuple(names) if names else None


Raw = Arrays | Table


def lacks(what: str, name: str, have: Iterable[str]) -> str:
    """What to say of a name that does not exist among those that do."""
    have = list(have)
    near = difflib.get_close_matches(name, have, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"has no {what} '{name}', only {', '.join(map(repr, have)) or 'none'}{hint}"

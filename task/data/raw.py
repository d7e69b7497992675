"""Rows as read from a source, before encoding: a table, or arrays of images and labels."""

import bisect
import difflib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIDDEN = "data that cannot be used; only this node's own log says why"
SHOWN = 30  # names listed in an error


class DataError(ValueError):
    """Data that cannot be used; the message names file, row and column.

    Rows count from 0, without the header. The message may quote values. `public` is the message for others: the kind of
    problem and names from the configuration, but nothing that depends on a value, no row and no file name.
    """

    def __init__(self, message: str, public: str = HIDDEN) -> None:
        super().__init__(message)
        self.public = public

    @classmethod
    def at(cls, place: str, row: int, column: str, problem: str, seen: str = "") -> "DataError":
        """Return the error for one value. `problem` is the kind of problem, in words that depend on no value; `seen`
        ends the message and is not public. The row is not public either: whoever can choose the column and labels would
        learn whose row it is."""
        return cls.of(f"{place}, row {row}", column, problem, seen)

    @classmethod
    def of(cls, where: str, column: str, problem: str, seen: str = "") -> "DataError":
        """Return the same error as `at`, for a row that is already named."""
        return cls(f"{where}, column '{column}': {problem}{seen}", f"column '{column}': {problem}")


@dataclass(frozen=True)
class Arrays:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) and labels (N,), in memory."""

    place: str
    images: NDArray[Any]
    labels: NDArray[Any]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, row: int) -> str:
        """Return the name of a row."""
        return f"{self.place}, row {row}"

    def fault(self, row: int, column: str, problem: str, seen: str = "") -> DataError:
        """Return what to raise for one value, as `DataError.at` has it."""
        return DataError.of(self.where(row), column, problem, seen)

    def require(self, column: str, key: str = "") -> None:
        """Do nothing: arrays have images and labels under any column name."""

    def has(self, column: str) -> bool:
        """Return False: images and labels are not columns."""
        return False

    def values(self, column: str, rows: NDArray[np.int64] | None = None) -> Iterator[object]:
        """Raise DataError: there are no columns of text or ids."""
        problem = f"images and labels only; there is no column '{column}'"
        raise DataError(f"{self.place} has {problem}", f"the data has {problem}")

    def missing(self, column: str) -> NDArray[np.bool_]:
        """Return which rows (N,) have no image: all False."""
        return np.zeros(len(self), bool)

    def label_values(self, column: str) -> Iterator[object]:
        """Return the label of every row."""
        return iter(self.labels.tolist())

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return None: arrays do not name their classes."""
        return None

    def named_by(self, column: str) -> str:
        """Return the noun for a label in messages."""
        return "label"


@dataclass(frozen=True)
class Table:
    """A `datasets.Dataset` of the columns that are read. Relative image paths start at `folder`; None: paths are not
    followed.

    `names` are all columns of the files (empty: those of the dataset). `lines` (N,) are the lines at which rows begin.
    If the rows are from several files, `files` has the first row and the name of each. `labelled` is the noun for
    labels that do not come from a column. `owners` (N,): the table's rows are items of lists, in these rows.
    """

    place: str
    dataset: Any
    folder: Path | None
    names: tuple[str, ...] = ()
    lines: NDArray[np.int64] | None = None
    files: tuple[tuple[int, str], ...] = ()
    notices: tuple[str, ...] = ()
    labelled: str = ""
    owners: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def where(self, row: int) -> str:
        """Return the name of a row: its file, its number in the file and, in a text file, its line."""
        row = row if self.owners is None else int(self.owners[row])
        place, line = self.place, "" if self.lines is None else f" (line {self.lines[row]})"
        if self.files:
            first, place = self.files[bisect.bisect_right([start for start, _ in self.files], row) - 1]
            row -= first
        return f"{place}, row {row}{line}"

    def fault(self, row: int, column: str, problem: str, seen: str = "") -> DataError:
        """Return what to raise for one value, as `DataError.at` has it."""
        return DataError.of(self.where(row), column, problem, seen)

    def require(self, column: str, key: str = "") -> None:
        """Raise DataError unless the table has this column, which `key` of the configuration names."""
        if not self.has(column):
            have = self.names or tuple(self.dataset.column_names)
            public = f"there is no column '{column}'"
            raise DataError(f"{self.place} {lacks('column', column, have, key)}{cure(column, key, have)}", public)

    def has(self, column: str) -> bool:
        """Return whether the table has this column."""
        return column in self.dataset.column_names

    def values(self, column: str, rows: NDArray[np.int64] | None = None) -> Iterator[object]:
        """Yield the values of a column in the order of `rows` (None: all); images as stored."""
        import datasets

        self.require(column)
        picked = self.dataset.select_columns([column])
        if isinstance(picked.features[column], datasets.Image):
            picked = picked.cast_column(column, datasets.Image(decode=False))
        if rows is not None:
            picked = picked.select(rows)
        for batch in picked.iter(1000):
            yield from batch[column]

    def missing(self, column: str) -> NDArray[np.bool_]:
        """Return which rows (N,) are empty in a column of images, without reading any image."""
        import pyarrow as pa
        from pyarrow import compute

        column_of = self.dataset.select_columns([column]).with_format("arrow")[:].column(0)
        if pa.types.is_struct(column_of.type):
            fields = [compute.struct_field(column_of, name) for name in ("bytes", "path")]
            return np.asarray(compute.and_(*(_empty(field) for field in fields)))
        return np.asarray(_empty(column_of))

    def label_values(self, column: str) -> Iterator[object]:
        """Yield the label of every row, as stored."""
        return self.values(column)

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the names that the column's type gives its numbers; None if it has none.

        Names that are the numbers themselves ("0", "1", ...), as in `ClassLabel(num_classes=2)`, do not count.
        """
        names = getattr(self.dataset.features[column], "names", None)
        return tuple(names) if names and list(names) != [str(code) for code in range(len(names))] else None

    def named_by(self, column: str) -> str:
        """Return the noun for a label in messages."""
        return self.labelled or ("class name of the column's type" if self.class_names(column) else "label")


def _empty(values: Any) -> Any:
    """Return which values are null, or texts or bytes of length 0."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        return compute.fill_null(compute.equal(compute.binary_length(values), 0), True)
    return compute.is_null(values)


Raw = Arrays | Table

# Common names of columns, by the key that names them here.
USUAL = {
    "data.text-column": ("text", "sentence", "content", "review", "body", "comment", "document", "tweet", "question"),
    "data.label-column": ("label", "labels", "target", "class", "category", "sentiment", "y"),
    "data.image-column": ("image", "img", "images", "pixel_values", "picture", "photo", "file_name", "path"),
    "data.instruction-column": ("instruction", "prompt", "question", "query", "input"),
    "data.output-column": ("output", "response", "completion", "answer", "text"),
    "data.input-column": ("input", "context"),
    "data.messages-column": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat"),
    "data.prompt-column": ("prompt", "question", "instruction", "input"),
    "data.completion-column": ("completion", "response", "answer", "output"),
    "data.chosen-column": ("chosen", "chosen_response", "preferred", "accepted"),
    "data.rejected-column": ("rejected", "rejected_response", "dispreferred"),
}
OTHERWISE = ("data.instruction-column", "data.output-column")  # rows without these columns may be conversations


def cure(column: str, key: str, have: Sequence[str]) -> str:
    """Return what to do about a missing column: set `key`, to the column with a common name for it if there is one; or
    the key for columns of conversations, if there is one."""
    if not key:
        return ""
    turns = "data.messages-column"
    chats = [name for name in have if key in OTHERWISE and fold(name) in USUAL[turns]]
    if chats:
        return f" (set {turns} = '{chats[0]}' if it has conversations)"
    near = meant(column, key, have)
    return f" (set {key} = '{near}')" if near else f" (set {key})"


def meant(column: str, key: str, have: Sequence[str]) -> str:
    """Return the column that is probably meant by a missing one: the only column with a common name for `key`, else the
    one with the most similar name; empty if there is neither."""
    usual = [name for name in have if fold(name) in USUAL.get(key, ())]
    return usual[0] if len(usual) == 1 else nearest(column, have)


def fold(name: str) -> str:
    """Return a name normalised in case, spaces and the form of accents."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def nearest(name: str, have: Iterable[str]) -> str:
    """Return the existing name that is most similar to a missing one; empty if none is similar."""
    folded = {fold(one): one for one in have}
    near = difflib.get_close_matches(fold(name), folded, n=1)
    return folded[near[0]] if near else ""


def lacks(what: str, name: str, have: Iterable[str], key: str = "") -> str:
    """Return the message for a missing name, with the existing ones; `key` as in `meant`."""
    have = list(have)
    near = meant(name, key, have)
    hint = f"; did you mean '{near}'?" if near else ""
    more = f" and {len(have) - SHOWN} more" if len(have) > SHOWN else ""
    return f"has no {what} '{name}', only {', '.join(map(repr, have[:SHOWN])) or 'none'}{more}{hint}"

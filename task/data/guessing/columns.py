"""Columns as a person would describe them: what they hold, how many cells are empty, which values repeat."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from task.data.encoding.chats.conversations import FORMS
from task.data.raw import USUAL, Raw, Table, fold
from task.data.sources.image_folder import IMAGE, is_image
from task.data.sources.image_folder import LABEL as FOLDER

COUNTED = 1000  # different values up to which a column's are counted
IMAGES = "data.image-column"
LOOKED_AT = 1000  # cells that tell what a column of texts holds
PART = re.compile(r"[^\W_]+|_")


class Holds(Enum):
    """What the cells of a column are."""

    TEXT = "texts"
    WHOLE = "whole numbers"
    NUMBER = "numbers"
    TRUTH = "true or false"
    CLASS = "classes"
    IMAGE = "images"
    TURNS = "conversations"
    LIST = "lists"
    OTHER = "other values"
    NOTHING = "nothing"


LABELS = (Holds.TEXT, Holds.CLASS, Holds.TRUTH, Holds.WHOLE)  # what can be the label of a row


@dataclass(frozen=True)
class Column:
    """A column of `rows` rows. `filled` are those with a value; a text without visible characters is none.

    `distinct` is how many different values there are (0: not counted, for lists and images). `counts` has the rows of
    each value, by its name, if there are at most COUNTED. `lengths` (N,) are characters of the texts that are filled;
    `size` are the UTF-8 bytes of all of them.
    """

    name: str
    holds: Holds
    rows: int
    filled: int
    distinct: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    lengths: Any = ()
    size: int = 0

    @property
    def repeats(self) -> bool:
        """Return whether its values are few enough to be labels or sites: at least two, and each in five rows on
        average."""
        return self.holds in LABELS and 2 <= self.distinct <= min(COUNTED, max(2, self.filled // 5))

    @property
    def mean(self) -> float:
        """Return the mean length of its texts, in characters."""
        return float(np.mean(self.lengths)) if len(self.lengths) else 0.0

    def called(self, names: Sequence[str]) -> bool:
        """Return whether it has one of these names, or one of them is a word of its name."""
        own = fold(self.name)
        return own in names or any(word in names for word in PART.findall(own))


def usual(columns: Sequence[Column], key: str) -> list[Column]:
    """Return the columns with a common name for a key of the configuration, the most common first."""
    names = USUAL.get(key, ())
    return sorted((one for one in columns if fold(one.name) in names), key=lambda one: names.index(fold(one.name)))


def seen(raw: Raw) -> list[Column]:
    """Return the columns of rows, in their order. Arrays have images and labels."""
    if isinstance(raw, Table):
        return [_column(raw, name) for name in raw.dataset.column_names]
    counts = {str(value): int(count) for value, count in zip(*np.unique(raw.labels, return_counts=True), strict=True)}
    return [
        Column(IMAGE, Holds.IMAGE, len(raw), len(raw)),
        Column(FOLDER, Holds.WHOLE, len(raw), len(raw), len(counts), counts),
    ]


def _column(table: Table, name: str) -> Column:
    import pyarrow as pa

    cells = table.dataset.select_columns([name]).with_format("arrow")[:].column(0)
    kind, rows, filled = cells.type, len(cells), len(cells) - cells.null_count
    if _are_images(table, name, kind):
        return Column(name, Holds.IMAGE, rows, rows - int(table.missing(name).sum()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return Column(name, Holds.TURNS if _has_turns(kind.value_type) else Holds.LIST, rows, filled)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _texts(name, cells, rows)
    return _values(table, name, cells, filled)


def _are_images(table: Table, name: str, kind: Any) -> bool:
    """Return whether a column has images by its type: encoded, or as lists of lists of pixels."""
    import datasets
    import pyarrow as pa

    if isinstance(table.dataset.features[name], datasets.Image) or _fields(kind) == {"bytes", "path"}:
        return True
    pixels = pa.types.is_list(kind) and pa.types.is_list(kind.value_type)
    return fold(name) in USUAL[IMAGES] and (pixels or pa.types.is_binary(kind))


def _fields(kind: Any) -> set[str]:
    """Return the names in a type of records; none for any other type."""
    import pyarrow as pa

    return {kind.field(number).name for number in range(kind.num_fields)} if pa.types.is_struct(kind) else set()


def _has_turns(kind: Any) -> bool:
    return any(set(form) <= _fields(kind) for form in FORMS)


def _texts(name: str, cells: Any, rows: int) -> Column:
    from pyarrow import compute

    whole = compute.utf8_trim_whitespace(cells)
    lengths = np.asarray(compute.fill_null(compute.utf8_length(whole), 0))
    some = whole.filter(lengths > 0)
    if not len(some):
        return Column(name, Holds.NOTHING, rows, 0)
    if all(is_image(Path(text)) for text in some[:LOOKED_AT].to_pylist()):
        return Column(name, Holds.IMAGE, rows, len(some))
    distinct, counts = _counted(some)
    size = int(compute.sum(compute.binary_length(some)).as_py())
    return Column(name, Holds.TEXT, rows, len(some), distinct, counts, lengths[lengths > 0], size)


def _values(table: Table, name: str, cells: Any, filled: int) -> Column:
    import pyarrow as pa

    kind, rows = cells.type, len(cells)
    if not filled or pa.types.is_null(kind):
        return Column(name, Holds.NOTHING, rows, 0)
    tests = {Holds.TRUTH: pa.types.is_boolean, Holds.WHOLE: pa.types.is_integer, Holds.NUMBER: _is_number}
    holds = next((held for held, test in tests.items() if test(kind)), Holds.OTHER)
    if holds is Holds.OTHER:
        return Column(name, holds, rows, filled)
    own = table.class_names(name)
    distinct, counts = _counted(cells.drop_null(), own)
    return Column(name, Holds.CLASS if own else holds, rows, filled, distinct, counts)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _counted(cells: Any, names: Sequence[str] | None = None) -> tuple[int, dict[str, int]]:
    """Return how many different values there are, and the rows of each if they are few."""
    from pyarrow import compute

    found = compute.value_counts(cells)
    if len(found) > COUNTED:
        return len(found), {}
    pairs = [(one["values"], one["counts"]) for one in found.to_pylist()]
    if names:
        pairs = [(names[value] if 0 <= value < len(names) else str(value), count) for value, count in pairs]
    return len(found), {str(value): count for value, count in pairs}

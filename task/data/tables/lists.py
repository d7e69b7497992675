"""Columns of lists, such as the words of a sentence and a label for each of them."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.texts import blank
from task.data.labels import SEPARATOR
from task.data.raw import Raw, Table

Positions = NDArray[np.int64]
OTHERS = (",", ";")  # signs that separate labels elsewhere


def lists_of(raw: Raw, column: str, rows: Positions) -> list[list[Any]]:
    """Return the lists of these rows. Raises DataError for the first value that is not a list."""
    found = []
    for row, value in zip(rows, raw.values(column, rows), strict=True):
        if not isinstance(value, list):
            raise raw.fault(int(row), column, "no list", f", but {value!r:.60}")
        found.append(value)
    return found


def without_words(raw: Raw, column: str) -> NDArray[np.bool_]:
    """Return which rows (N,) have no list of words, or a list without a word. Raises DataError for any other value."""
    empty = np.zeros(len(raw), bool)
    for row, words in enumerate(raw.values(column)):
        if words is None:
            empty[row] = True
        elif not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise raw.fault(row, column, "no list of words", f", but {words!r:.60}")
        else:
            empty[row] = all(blank(word) for word in words)
    return empty


def items_of(raw: Raw, column: str, rows: Positions) -> Table:
    """Return the items of these rows' lists as rows of a new table. Code that reads the label of a row then reads the
    label of an item, and errors name the row that has the item. Raises DataError."""
    found = lists_of(raw, column, rows)
    assert isinstance(raw, Table)  # arrays have no columns, which `lists_of` says
    return _as_rows(raw, column, rows, found)


def label_items(raw: Raw, column: str, rows: Positions) -> Table:
    """Return the labels of these rows as rows of a new table, as `items_of` does.

    A column without lists has texts, with SEPARATOR between labels, or single labels; an empty cell has none. Raises
    DataError.
    """
    found = list(raw.values(column, rows))
    if any(isinstance(value, list) for value in found):
        return items_of(raw, column, rows)
    assert isinstance(raw, Table)  # arrays have no columns, which `values` says
    return _as_rows(raw, column, rows, [_parts(value) for value in found])


def check_separator(raw: Raw, column: str, rows: Positions) -> None:
    """Raise DataError if no text has SEPARATOR and one seems to have another, before texts become names of labels."""
    found = list(raw.values(column, rows))
    texts = {place: value for place, value in enumerate(found) if isinstance(value, str)}
    if any(SEPARATOR in text for text in texts.values()):
        return
    for place, text in texts.items():
        if other := next((sign for sign in OTHERS if sign in text), ""):
            problem = f"labels are separated by '{SEPARATOR}', and no row has one"
            seen = f"; this one has '{other}': {text!r:.60}; if it is part of a label, name the labels by data.labels"
            raise raw.fault(int(rows[place]), column, problem, seen)


def _parts(value: object) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(SEPARATOR) if part.strip()]
    return [] if value is None or value != value else [value]


def _as_rows(raw: Table, column: str, rows: Positions, found: list[list[Any]]) -> Table:
    import datasets

    feature = getattr(raw.dataset.features[column], "feature", None)
    features = None if feature is None else datasets.Features({column: feature})
    items = datasets.Dataset.from_dict({column: [item for items in found for item in items]}, features=features)
    return replace(raw, dataset=items, owners=np.repeat(rows, [len(items) for items in found]))

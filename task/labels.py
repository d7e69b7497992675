"""Labels: from what a column holds (whole numbers, strings, class labels) to numbers counted from 0."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from task.raw import DataError, Raw

SEPARATOR = "|"  # of label names in a configuration
FEW = 20  # rows of which each may have a label of its own


class LabelError(DataError):
    """Labels that are not among those given."""


def check_few(raw: Raw, column: str, most: int) -> None:
    """DataError for a column of more than `most` different values, or more than half as many as rows, which are names,
    numbers of people or free text rather than labels. Asked before labels are compared to any."""
    different = len(set(_values(raw, column)))
    if different > most or (len(raw) >= FEW and different > len(raw) / 2):
        problem = f"column '{column}' has too many different values to be labels"
        raise DataError(f"{raw.place}, {problem}: {different} in {len(raw)} rows", problem)


def label_names(raw: Raw, column: str, given: Sequence[str]) -> tuple[str, ...]:
    """As `category_names`, of what a classifier learns to tell apart: two at least."""
    names = category_names(raw, column, given)
    if len(names) < 2:
        problem = f"column '{column}': one label only"
        raise DataError(f"{raw.place}, {problem} ({_shown(names)}), nothing to tell apart", problem)
    return names


def category_names(raw: Raw, column: str, given: Sequence[str]) -> tuple[str, ...]:
    """Label names in order: those given, else of the column's type, else its sorted distinct values."""
    names = tuple(given) or raw.class_names(column)
    if names is None:
        names = tuple(str(value) for value in sorted(set(_values(raw, column))))
    if len(set(names)) < len(names):
        raise DataError(f"data.labels names a label twice: {_shown(names)}")
    if bad := [name for name in names if SEPARATOR in name]:
        raise DataError(f"{raw.place}, column '{column}': a label may not hold '{SEPARATOR}', as {bad[0]!r} does")
    return names


def label_codes(raw: Raw, column: str, names: Sequence[str]) -> NDArray[np.int64]:
    """The label of every row (N,) as a position in `names`.

    A string is looked up as it is. A number is looked up as text where names are numbers,
    else it is the position.
    Raises DataError for a missing label, LabelError for one that is not among the names.
    """
    codes: dict[str | int, int] = {name: code for code, name in enumerate(names)}
    if not any(_is_whole(name) for name in names):
        codes |= {code: code for code in range(len(names))}
    own = raw.class_names(column)
    words = own if own and set(own) <= set(names) else None
    labels = np.empty(len(raw), np.int64)
    for row, value in enumerate(_values(raw, column)):
        found = words[value] if words and isinstance(value, int) and 0 <= value < len(words) else value
        code = codes.get(found, codes.get(str(found)))
        if code is None:
            raise LabelError(
                f"{raw.place}, row {row}, column '{column}': the label is none of {_shown(names)}: {found!r:.60}",
                f"column '{column}': a label is not among those given",
            )
        labels[row] = code
    return labels


def _values(raw: Raw, column: str) -> list[str | int]:
    raw.require(column)
    numbered = raw.class_names(column) is not None
    return [_value(value, raw.place, row, column, numbered) for row, value in enumerate(raw.label_values(column))]


def _value(value: object, place: str, row: int, column: str, numbered: bool) -> str | int:
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers that had gaps
        value = int(value)
    missing = value is None or value != value or (isinstance(value, str) and not value.strip())
    if missing or (numbered and value == -1):
        raise DataError.at(place, row, column, "the label is missing")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return value.strip()
    raise DataError.at(place, row, column, "a label is a whole number or text", f", not {value!r:.60}")


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

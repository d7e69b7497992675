"""Labels: from the values of a column (whole numbers, strings, class labels) to numbers counted from 0.

Labels are matched by name. A number is read as a position among the names only if it can mean nothing else.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from task.data.raw import DataError, Raw, fold, nearest

SEPARATOR = "|"  # between label names in a configuration
SHOWN = 5  # pairs of similar labels in a notice
FEW = 20  # up to so many rows, each may have its own label
WHOLE = re.compile(r"-?\d+")
NUMBER = re.compile(r"[-+]?(\d{1,15}(\.\d*)?|\.\d+)")
Rows = NDArray[np.int64]
WRITE = "write the names into the column"


class LabelError(DataError):
    """A label that is not among the given ones."""


@dataclass(frozen=True)
class Codes:
    """The label of every row (N,) as a position among the names; whether the data's numbers are such positions; and
    notices."""

    codes: NDArray[np.int64]
    by_position: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """Label names, and the label of every row as a position among them: `codes` (N,) int64, None if rows have no labels
    of their own. `by_position`: whether the data has such positions; None if the column's type names the labels."""

    names: tuple[str, ...]
    codes: NDArray[np.int64] | None
    by_position: bool | None = None
    notices: tuple[str, ...] = ()


def check_few(raw: Raw, column: str, most: int, rows: Rows) -> None:
    """Raise DataError for a column of more than `most` different values, or of more than half as many as rows: they are
    names, personal numbers or free text rather than labels. Call it before labels are compared with any others."""
    different = len(set(_values(raw, column, rows)))
    if different > most or (len(rows) >= FEW and different > len(rows) / 2):
        problem = f"column '{column}' has too many different values to be labels"
        raise DataError(f"{raw.place}, {problem}: {different} in {len(rows)} rows", problem)


def label_names(raw: Raw, column: str, given: Sequence[str], rows: Rows) -> tuple[str, ...]:
    """Return the label names for a classifier, as `category_names` does. Raises DataError for fewer than two."""
    names = category_names(raw, column, given, rows)
    if len(names) < 2:
        problem = f"column '{column}': one label only"
        raise DataError(f"{raw.place}, {problem} ({_shown(names)}), nothing to tell apart", problem)
    return names


def category_names(raw: Raw, column: str, given: Sequence[str], rows: Rows) -> tuple[str, ...]:
    """Return label names in order: the given ones, else those of the column's type, else its sorted values."""
    names = tuple(given) or tuple(name.strip() for name in raw.class_names(column) or ())
    if not names:
        names = tuple(str(value) for value in sorted(set(_values(raw, column, rows)), key=_order))
    if len(set(names)) < len(names):
        raise DataError(f"data.labels names a label twice: {_shown(names)}")
    if "" in names:
        raise DataError(f"{raw.place}, column '{column}': a class of the column's type has no name")
    if bad := [name for name in names if SEPARATOR in name]:
        raise DataError(f"{raw.place}, column '{column}': a label must not contain '{SEPARATOR}', as {bad[0]!r} does")
    return names


def alike(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return notices on labels that look the same to a person but are different classes."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(fold(name), []).append(name)
    pairs = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    problem = "are classes of their own, and differ in case, spaces or the form of accents only"
    return tuple(f"{where}: the labels {pair} {problem}" for pair in pairs[:SHOWN])


def label_codes(raw: Raw, column: str, names: Sequence[str], rows: Rows, by_position: bool | None = None) -> Codes:
    """Return the labels of these rows, found among `names`.

    A string, or the name that a column's type gives a number, is looked up unchanged. A number is looked up as text if
    the names are numbers. If they are words, it is a position, provided that no row has a name, all numbers are in
    range and 0 is among them: otherwise they may count from 1. `by_position` says that numbers are known to be
    positions (True) or not (False). Raises DataError for a missing label, LabelError for one not among the names.
    """
    places = _places(names)
    truths = {fold(name): code for code, name in enumerate(names) if fold(name) in ("true", "false")}
    values = _values(raw, column, rows)
    found = [truths.get(fold(value)) if isinstance(value, Truth) else places.get(str(value)) for value in values]
    if None not in found:
        return Codes(np.array(found, np.int64))
    if _are_positions(raw, column, values, names, by_position):
        shown = ", ".join(f"{code} is '{name}'" for code, name in enumerate(names[:5]))
        more = " and so on" if len(names) > 5 else ""
        said = f"{raw.place}, column '{column}': numbers are read as positions among the labels: {shown}{more}"
        return Codes(np.array([int(value) for value in values], np.int64), True, (said,))
    first = found.index(None)
    raise _unknown(raw, column, int(rows[first]), values, first, names)


def labelled(raw: Raw, column: str, names: tuple[str, ...], rows: Rows, by_position: bool | None = None) -> Labels:
    """Return `names`, the labels of these rows as `label_codes` reads them, and notices."""
    found = label_codes(raw, column, names, rows, by_position)
    positions = True if found.by_position else (None if raw.class_names(column) else False)
    return Labels(names, found.codes, positions, (*found.notices, *alike(names, raw.place)))


def _places(names: Sequence[str]) -> dict[str, int]:
    """Return the position of every name. A name that is a number in another form, such as 1.0 or 01, is also found by
    the number, unless two names are the same number."""
    places = {name: code for code, name in enumerate(names)}
    plain = [f"{float(name):.0f}" if _is_number(name) and float(name).is_integer() else "" for name in names]
    return {name: code for code, name in enumerate(plain) if name and plain.count(name) == 1} | places


class Truth(str):
    """True or false, as a value of a column of booleans."""


def _are_positions(
    raw: Raw, column: str, values: Sequence[str | int], names: Sequence[str], known: bool | None
) -> bool:
    if known is False or raw.class_names(column) or raw.named_by(column) != "label" or any(map(_is_number, names)):
        return False
    if not all(isinstance(value, int) or _is_whole(value) for value in values):
        return False
    numbers = {int(value) for value in values}
    return min(numbers) >= 0 and max(numbers) < len(names) and (known is True or 0 in numbers)


def _unknown(
    raw: Raw, column: str, row: int, values: Sequence[str | int], place: int, names: Sequence[str]
) -> LabelError:
    """Return the error for the first label that is not among the names."""
    value = values[place]
    near = nearest(str(value), names)
    if near and fold(near) == fold(str(value)):
        hint = f"; '{near}' differs in case, spaces or the form of accents only"
    elif near:
        hint = f"; did you mean '{near}'?"
    else:
        hint = _of_numbers(values, names)
    problem = f"the {raw.named_by(column)} is none of {_shown(names)}"
    return LabelError(
        f"{raw.where(row)}, column '{column}': {problem}: {value!r:.60}{hint}",
        f"column '{column}': a label is not among those given",
    )


def _of_numbers(values: Sequence[str | int], names: Sequence[str]) -> str:
    """Return why numbers are not read as positions among the names."""
    if any(map(_is_number, names)) or not all(isinstance(value, int) or _is_whole(value) for value in values):
        return ""
    numbers = {int(value) for value in values}
    if 0 not in numbers and min(numbers) > 0:
        return f"; 0 is not among these numbers, so they may count from 1: {WRITE}"
    if min(numbers) < 0 or max(numbers) >= len(names):
        return f"; as positions numbers go from 0 to {len(names) - 1}: {WRITE}"
    return f"; where labels have names a number may mean anything: {WRITE}"


def _values(raw: Raw, column: str, rows: Rows) -> list[str | int]:
    raw.require(column)
    own = raw.class_names(column)
    every = list(raw.label_values(column))
    if all(value is None or (own and value == -1) for value in every):
        problem = "no row has a label"
        cure = "name another split (data.test-split, data.validation-split) or another column"
        raise DataError(f"{raw.place}, column '{column}': {problem}; {cure}", f"column '{column}': {problem}")
    return [_value(every[row], raw, int(row), column, own) for row in rows]


def _value(value: object, raw: Raw, row: int, column: str, own: Sequence[str] | None) -> str | int:
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with missing values
        value = int(value)
    missing = value is None or value != value or (isinstance(value, str) and not value.strip())
    if missing or (own and value == -1):
        raise raw.fault(row, column, "the label is missing")
    if isinstance(value, bool):
        return Truth(str(value).lower())
    if isinstance(value, int):
        if own and not 0 <= value < len(own):
            raise raw.fault(row, column, "a number is beyond the class names of the column's type", f": {value}")
        return own[value].strip() if own else value
    if isinstance(value, str):
        return value.strip()
    raise raw.fault(row, column, "a label is a whole number or text", f", not {value!r:.60}")


def _order(value: str | int) -> tuple[int, int, str]:
    """Return a sort key: numbers by size, also if written as text, before words."""
    return (0, int(value), str(value)) if _is_whole(value) else (1, 0, str(value))


def _is_number(name: str) -> bool:
    return NUMBER.fullmatch(name) is not None


def _is_whole(value: str | int) -> bool:
    return WHOLE.fullmatch(str(value)) is not None and len(str(value)) < 20


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

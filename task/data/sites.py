"""Natural clients: the site of every row."""

import numpy as np
from numpy.typing import NDArray

from task.data.raw import Raw


def sites_of(raw: Raw, column: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the site of each of these rows, numbered from 0 in sorted order, and the sites' names.

    Raises DataError for the first row without an id, and gives the number of such rows.
    """
    own = raw.class_names(column)
    every = list(raw.values(column))
    values = [_id(every[row]) for row in rows]
    if missing := [row for row, value in zip(rows, values, strict=True) if value is None]:
        more = f"; so it is in {len(missing)} of {len(rows)} rows" if len(missing) > 1 else ""
        seen = f", but {every[missing[0]]!r:.60}{more}: give each row the name of its site, or leave it out"
        raise raw.fault(int(missing[0]), column, "no id", seen)
    unique, numbers = np.unique(np.array(values), return_inverse=True)
    names = tuple(own[value] if own else str(value) for value in unique.tolist())
    return numbers.astype(np.int64), names


def _id(value: object) -> str | int | None:
    """Return an id without surrounding spaces; None for a value that names no site."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return (value.strip() or None) if isinstance(value, str) else value

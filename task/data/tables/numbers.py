"""Columns of numbers that are learned."""

import math
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from task.data.raw import Raw

LARGEST = 500.0  # the square of twice this is the largest loss that a node may report


def numbers_of(raw: Raw, column: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the numbers (N,) of these rows; a text that is a number counts as one.

    Raises DataError for the first value that is missing, no number, not finite, or beyond LARGEST.
    """
    found = np.empty(len(rows), np.float32)
    for place, (row, value) in enumerate(zip(rows, raw.values(column, rows), strict=True)):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise raw.fault(int(row), column, "the number is missing")
        number = _number(value)
        if number is None:
            raise raw.fault(int(row), column, "no number", f", but {value!r:.60}")
        if not math.isfinite(number):
            raise raw.fault(int(row), column, "no finite number", f", but {number}")
        if abs(number) > LARGEST:
            cure = "write numbers of a smaller scale, such as standardised ones (mean 0, spread 1)"
            raise raw.fault(int(row), column, f"a number is beyond {LARGEST:g}; {cure}", f": {number:g}")
        found[place] = number
    return found


def _number(value: object) -> float | None:
    """Return a value as a number; None if it is none."""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str) or "_" in value:  # Python reads 1_000 as a number, and nobody else does
        return None
    try:
        return float(value)
    except ValueError:
        return None

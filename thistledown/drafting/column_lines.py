"""The columns of data in lines for people."""

from collections.abc import Iterator, Sequence

import numpy as np

from task.data.encoding.images import image_of
from task.data.encoding.pixels import NoImage
from task.data.guessing.columns import Column, Holds
from task.data.raw import Arrays, Raw

VALUES = 8  # that are shown with their rows
IMAGES = 20  # that are looked at
WIDEST = 40  # characters of a value


def described(raw: Raw, columns: Sequence[Column]) -> Iterator[str]:
    """Yield a line for each column."""
    width = max((len(one.name) for one in columns), default=0)
    for column in columns:
        empty = column.rows - column.filled
        gaps = f"; {empty:,} of {column.rows:,} cells are empty" if empty and column.filled else ""
        yield f"  {column.name:<{width}}  {column.holds.value}{_what(raw, column)}{gaps}"


def _what(raw: Raw, column: Column) -> str:
    if column.holds is Holds.IMAGE:
        return _sizes(raw, column)
    if column.counts and len(column.counts) <= VALUES:
        counts = sorted(column.counts.items(), key=lambda pair: -pair[1])
        return f", {len(counts)} different: " + ", ".join(f"{name:.{WIDEST}} ({count:,})" for name, count in counts)
    different = f", {column.distinct:,} different" if column.distinct else ""
    if not len(column.lengths):
        return different
    low, middle, high = np.percentile(column.lengths, [0, 50, 100])
    return f"{different}, of {low:,.0f} to {high:,.0f} characters, half of them more than {middle:,.0f}"


def _sizes(raw: Raw, column: Column) -> str:
    """Return width and height of some images, and how many of these cannot be read."""
    rows = np.unique(np.linspace(0, len(raw) - 1, IMAGES).astype(np.int64))
    values = raw.images[rows] if isinstance(raw, Arrays) else raw.values(column.name, rows)
    sizes, bad = [], ""
    for row, value in zip(rows.tolist(), values, strict=True):
        try:
            sizes.append(image_of(value, None if isinstance(raw, Arrays) else raw.folder).size)
        except NoImage as error:
            bad = bad or f"; row {row} has none: {error}{error.seen}"
    if not sizes:
        return bad
    low, high = np.min(sizes, axis=0), np.max(sizes, axis=0)
    span = f"{low[0]} x {low[1]}" + ("" if (low == high).all() else f" to {high[0]} x {high[1]}")
    return f" of {span} pixels, as {len(sizes)} of them show{bad}"

"""The two extreme rows that a model may see: the longest possible one, and the shortest in the data."""

import numpy as np

from task.data.rows import Rows


def extremes(rows: Rows, most: int) -> Rows:
    """Return two rows: the longest possible one, made from the longest in the data, and the shortest; for images, the
    first and the last row."""
    if rows.inputs.tokens is None:
        return rows.select([0, len(rows) - 1])
    order = np.argsort(rows.lengths, kind="stable")
    return stretched(rows.select([int(order[-1]), int(order[0])]), most)


def stretched(rows: Rows, length: int) -> Rows:
    """Return the same two rows, the first with `length` tokens: those between its first and last are repeated or left
    out."""
    assert rows.indices is not None
    return Rows(rows.inputs.stretched(rows.indices, length), rows.labels, rows.names, indices=np.arange(2))

"""Two rows that are all a model meets: the longest that there could be, and the shortest that there is."""

import numpy as np

from task.data.rows import Rows


def extremes(rows: Rows, most: int) -> Rows:
    """Return two rows: the longest that there could be, made of the longest that there is, and the shortest; of images
    the first and the last."""
    if rows.inputs.tokens is None:
        return rows.select([0, len(rows) - 1])
    order = np.argsort(rows.lengths, kind="stable")
    return stretched(rows.select([int(order[-1]), int(order[0])]), most)


def stretched(rows: Rows, length: int) -> Rows:
    """Return the same two rows, the first of `length` tokens: what is between its first and last is repeated, or left
    out."""
    assert rows.indices is not None
    return Rows(rows.inputs.stretched(rows.indices, length), rows.labels, rows.names, indices=np.arange(2))

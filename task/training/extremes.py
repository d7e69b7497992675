"""Two rows that are all a model meets: the longest that there could be, and the shortest that there is."""

from dataclasses import replace

import numpy as np

from task.data.rows import Completions, Pixels, Rows, Tokens


def extremes(rows: Rows, most: int) -> Rows:
    """Two rows: the longest that there could be, made of the longest that there is, and the shortest; of images the
    first and the last."""
    if isinstance(rows.inputs, Pixels):
        return rows.select([0, len(rows) - 1])
    order = np.argsort(rows.lengths, kind="stable")
    return stretched(rows.select([int(order[-1]), int(order[0])]), most)


def stretched(rows: Rows, length: int) -> Rows:
    """The same two rows, the first of `length` tokens: what is between its first and last is repeated, or left out."""
    tokens = tokens_of(rows)
    assert tokens is not None
    assert rows.indices is not None
    first, second = (tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows.indices)
    inside = first[1:-1] if len(first) > 2 else first
    ids = [np.concatenate([first[:1], np.resize(inside, max(length - 2, 0)), first[-1:]])[-length:], second]
    own = replace(tokens, ids=np.concatenate(ids), offsets=np.cumsum([0, *map(len, ids)]))
    inputs: Tokens | Completions = own
    if isinstance(rows.inputs, Completions):
        prompts = np.minimum(rows.inputs.prompts[rows.indices], [len(row) - 1 for row in ids])
        inputs = Completions(own, prompts)
    return Rows(inputs, rows.labels, rows.names, indices=np.arange(2))


def tokens_of(rows: Rows) -> Tokens | None:
    """The tokens of rows, prompts included; None of images."""
    inputs = rows.inputs
    return inputs if isinstance(inputs, Tokens) else inputs.tokens if isinstance(inputs, Completions) else None

"""Packing: several rows of tokens behind one another in one, so that little is filled up.

A row attends to itself alone, and its positions count from 0. Models of transformers see that from the position ids, if
there is no attention mask (`find_packed_sequence_indices` in `transformers.masking_utils`); the dry run tries whether a
model does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from task.data.rows import IGNORED, Rows


def packed(rows: Rows, positions: torch.Tensor, most: int, device: str) -> dict[str, Any]:
    """Return the rows at these positions as keyword arguments of a language model: `input_ids`, `position_ids` and
    `labels`, each (packs, tokens) int64, with at most `most` tokens in a pack, or one row; and `use_cache`.

    A row's first token is not learned: it would be predicted from the row before. Tokens that fill up attend to
    themselves.
    """
    batch = {name: tensor.numpy() for name, tensor in rows.batch(positions).items()}
    own = batch["attention_mask"].astype(bool)
    packs = fill(own.sum(1), most)
    shape = len(packs), max(int(own[pack].sum()) for pack in packs)
    made = {"input_ids": np.zeros(shape, np.int64), "position_ids": np.zeros(shape, np.int64)}
    made["labels"] = np.full(shape, IGNORED, np.int64)
    for number, pack in enumerate(packs):
        end = 0
        for row in pack:
            start, end = end, end + int(own[row].sum())
            made["input_ids"][number, start:end] = batch["input_ids"][row][own[row]]
            made["position_ids"][number, start:end] = np.arange(end - start)
            made["labels"][number, start + 1 : end] = batch["labels"][row][own[row]][1:]
    tensors = {name: torch.from_numpy(values).to(device) for name, values in made.items()}
    return {**tensors, "use_cache": False}  # with a cache, models do not look at positions


def fill(lengths: NDArray[np.int64] | Sequence[int], most: int) -> list[list[int]]:
    """Return packs of rows of at most `most` tokens together, or of one row: the longest rows first, each into the
    first pack that has room (first-fit decreasing)."""
    packs: list[list[int]] = []
    room: list[int] = []
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[row])
        place = next((place for place, left in enumerate(room) if left >= length), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(most)
        packs[place].append(row)
        room[place] -= length
    return packs

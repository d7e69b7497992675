"""Prepared rows of preferences: two sequences of tokens a row, the chosen one and the rejected one."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from task.data.rows import LabelledTokens, Positions, Tokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AnswerPairs:
    """A prompt with its chosen answer and the same with its rejected answer, for each of N rows. `sequences` (2N) are
    the N with chosen answers and, in the same order, those with rejected ones; labels are those of answers."""

    sequences: LabelledTokens

    def __len__(self) -> int:
        return len(self.sequences) // 2

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return the batch of `LabelledTokens` of 2B sequences: chosen and rejected take turns."""
        return self.sequences.batch(np.stack([rows, rows + len(self)], axis=1).ravel(), device)

    @property
    def chosen(self) -> LabelledTokens:
        """Return the N sequences with chosen answers."""
        tokens = self.sequences.tokens
        return LabelledTokens(replace(tokens, offsets=tokens.offsets[: len(self) + 1]), self.sequences.values)

    @property
    def tokens(self) -> Tokens:
        """Return the tokens of all sequences."""
        return self.sequences.tokens

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens in the longer sequence of every row (N,)."""
        chosen, rejected = np.split(self.sequences.lengths, 2)
        return np.maximum(chosen, rejected)

    def stretched(self, rows: Positions, length: int) -> "AnswerPairs":
        """Return two of these rows, both sequences of the first with `length` tokens."""
        sides = [self.sequences.stretched(rows + first, length) for first in (0, len(self))]
        ids, values = (np.concatenate(parts) for parts in zip(*((s.tokens.ids, s.values) for s in sides), strict=True))
        offsets = np.cumsum([0, *(length for side in sides for length in side.lengths)])
        return AnswerPairs(LabelledTokens(replace(self.tokens, ids=ids, offsets=offsets), values))

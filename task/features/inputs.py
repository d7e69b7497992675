"""Features of rows as inputs of a model whose body is skipped."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from task.data.rows import Positions, Tokens
from task.features.cut import Cut

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Features:
    """Features `values` (N, ...) and `labels` (N, ...) of rows, mapped into memory, for a model that is `cut`; the
    `lengths` are the tokens that the rows had, None for images."""

    values: NDArray[Any]
    labels: NDArray[Any]
    lengths: NDArray[np.int64] | None
    cut: Cut

    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return the features of rows, as the model takes them, and their labels."""
        import torch

        values, labels = (torch.from_numpy(found[rows]).to(device) for found in (self.values, self.labels))
        return {self.cut.carrier: self.cut.carried(values), "labels": labels}

    def stretched(self, rows: Positions, length: int) -> "Features":
        """Raise TypeError: features are no sequences of tokens."""
        raise TypeError("features have no tokens")

"""What a model puts out for labelled rows, beside their labels, and the loss of each."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from task.data.rows import Rows
from task.training.parallel_evaluation import evaluate_in_parallel, portion

ROWS = 256  # rows scored at a time
Numbers = NDArray[np.float64]


def outputs(module: nn.Module, rows: Rows, device: str, at_once: int = 1) -> tuple[Numbers, Numbers]:
    """Return the logits (N, K) of a model in evaluation mode for all rows, and their labels, (N,) or (N, K), float64.
    `at_once` batches are scored at a time."""

    def score(positions: torch.Tensor) -> tuple[Any, ...]:
        batch = rows.batch(positions, device)
        labels = batch.pop("labels")
        return tuple(found.double().cpu().numpy() for found in (module(**batch).logits, labels))

    batches = torch.split(torch.arange(len(rows)), portion(ROWS, device))
    logits, labels = map(np.concatenate, zip(*evaluate_in_parallel(score, batches, at_once), strict=True))
    return logits, labels


def row_losses(module: nn.Module, rows: Rows, device: str, at_once: int = 1) -> Numbers:
    """Return the cross-entropy (nats) of each of these rows (N,), by a classifier in evaluation mode. `at_once` batches
    are scored at a time."""
    logits, labels = map(torch.from_numpy, outputs(module, rows, device, at_once))
    losses: Numbers = cross_entropy(logits, labels.long(), reduction="none").numpy()
    return losses

"""Micro-batches: the gradient of a batch, a few rows at a time.

The loss of a batch is the mean over its labels: rows of a classifier, tokens of a language model, numbers (`count` of
the task kind). A micro-batch counts by its share of them, so the gradients add up to that of the batch, up to rounding.
With equal shares a token of a short row would count more than one of a long row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from task.config import TaskConfig
from task.kinds.base import Kind
from task.training.batches import Unsuited, least_rows
from task.training.mixed_precision import Masters

Penalty = Callable[[], torch.Tensor]
Inputs = dict[str, Any]  # keyword arguments of a model


class BatchLoss(nn.Module):
    """The loss of a task kind as a module around a model, for `torch.func.functional_call`: parameters that stand in
    for the model's own (`module.<name>`) are those of the model wherever the loss calls it."""

    def __init__(self, kind: Kind, module: nn.Module) -> None:
        super().__init__()
        self.kind, self.module = kind, module

    def forward(self, batch: Inputs) -> torch.Tensor:
        """Return the loss of a batch."""
        return self.kind.loss(self.module, batch)


def check_separable(module: Any, config: TaskConfig) -> None:
    """Raise Unsuited if batches are divided and the loss of this model in training mode is no mean over its labels."""
    if config.rows_at_once == config.batch_size:
        return
    problem = ""
    if least_rows(module) > 1:
        problem = "normalises over the rows of a batch"
    elif getattr(getattr(module, "config", None), "output_router_logits", False):
        problem = "adds a loss over all tokens of a batch, which balances its experts (output_router_logits)"
    if problem:
        raise Unsuited(
            f"micro-batch-size divides batches, and this model {problem}: gradients of parts do not add up to those of "
            "batches; set micro-batch-size = 0"
        )


def backward(
    kind: Kind, module: nn.Module, parts: Sequence[Inputs], penalties: Sequence[Penalty | None], masters: Masters
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradient of a batch, given as its micro-batches, with penalties added once. Return its loss without
    penalties, and its count, both as the task kind has them."""
    counts, losses = [kind.count(part) for part in parts], []
    for part, share in _weighted(parts, counts):
        loss = _loss(kind, module, part, share)
        losses.append(loss.detach())
        for extra in penalties if len(losses) == 1 else ():
            loss = loss if extra is None else loss + extra()
        loss.backward()  # type: ignore[no-untyped-call]
        masters.take_gradients()
    return torch.stack(losses).sum(), torch.stack(counts).sum()


def mean_loss(kind: Kind, module: nn.Module, parts: Sequence[Inputs]) -> torch.Tensor:
    """Return the loss of a batch, given as its micro-batches."""
    weighted = _weighted(parts, [kind.count(part) for part in parts])
    return torch.stack([_loss(kind, module, part, share) for part, share in weighted]).sum()


def _weighted(parts: Sequence[Inputs], counts: list[torch.Tensor]) -> list[tuple[Inputs, float]]:
    """Return the micro-batches with their shares of the batch's labels. Those without labels have no loss, and are left
    out unless there are no others."""
    if len(parts) == 1:
        return [(parts[0], 1.0)]
    numbers = [int(count) for count in counts]
    pairs = [(part, number / sum(numbers)) for part, number in zip(parts, numbers, strict=True) if number]
    return pairs or [(parts[0], 1.0)]


def _loss(kind: Kind, module: nn.Module, part: Inputs, share: float) -> torch.Tensor:
    loss = kind.loss(module, part)
    return loss if share == 1.0 else loss * share

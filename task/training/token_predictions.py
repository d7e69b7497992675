"""A model's predictions for every labelled token, with the true labels."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from task.data.rows import IGNORED, Rows
from task.training.parallel_evaluation import evaluate_in_parallel, portion

ROWS = 256  # rows scored at a time


@dataclass(frozen=True)
class Predictions:
    """The true and the predicted (`said`) label names of every row's tokens; `loss`: mean cross-entropy, nats."""

    true: list[list[str]]
    said: list[list[str]]
    loss: float

    @property
    def accuracy(self) -> float:
        """Return the share of tokens whose label has the largest logit."""
        right = [one == other for row in zip(self.true, self.said) for one, other in zip(*row)]
        return sum(right) / len(right)


def token_predictions(module: nn.Module, rows: Rows, device: str, at_once: int = 1) -> Predictions:
    """Return the predictions of a model in evaluation mode; tokens without a label are left out. `at_once` batches are
    scored at a time."""
    names: dict[int, str] = module.config.id2label  # type: ignore[union-attr, assignment]

    def score(positions: torch.Tensor) -> tuple[Any, ...]:
        batch = rows.batch(positions, device)
        labels, output = batch["labels"], module(**batch)
        logits = output.logits[:, -labels.shape[1] :]  # after the logits of soft prompts
        said, learned = logits.argmax(-1), labels != IGNORED
        pairs = [(labels[row][own].tolist(), said[row][own].tolist()) for row, own in enumerate(learned)]
        return float(output.loss) * int(learned.sum()), pairs

    batches = torch.split(torch.arange(len(rows)), portion(ROWS, device))
    losses, parts = zip(*evaluate_in_parallel(score, batches, at_once), strict=True)
    true, said = ([[names[code] for code in pair[side]] for part in parts for pair in part] for side in (0, 1))
    return Predictions(true, said, math.fsum(losses) / sum(map(len, true)))

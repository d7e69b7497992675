"""What a tuned model says of rows: a label with the probability of each, or a text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from task.data.rows import Inputs
from task.training.parallel_evaluation import portion

ROWS = 256  # scored at a time on an accelerator


@dataclass(frozen=True)
class Prediction:
    """The answer to one row, and for a classifier the probability of every label, the likeliest first."""

    answer: str
    probabilities: Mapping[str, float] = field(default_factory=dict)


NOTHING = Prediction("")  # of a row that has no input


def classify(module: nn.Module, inputs: Inputs, labels: Sequence[str], device: str) -> Iterator[Prediction]:
    """Yield the prediction of every row, by a model in evaluation mode with one logit per label."""
    for positions in torch.split(torch.arange(len(inputs)), portion(ROWS, device)):
        with torch.no_grad():
            logits = module(**inputs.batch(positions.numpy(), device)).logits
        for row in logits.double().softmax(-1).cpu():
            order = row.argsort(descending=True, stable=True).tolist()
            found = {labels[label]: float(row[label]) for label in order}
            yield Prediction(labels[order[0]], found)

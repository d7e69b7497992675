"""Labels of rows, by a tuned classifier."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from task.data.rows import Inputs
from task.prediction.answer import Prediction
from task.training.parallel_evaluation import portion

ROWS = 256  # scored at a time on an accelerator


def classify(module: nn.Module, inputs: Inputs, labels: Sequence[str], device: str) -> Iterator[Prediction]:
    """Yield the prediction of every row, by a model in evaluation mode with one logit per label."""
    for logits in logits_of(module, inputs, device):
        found = ordered(logits.softmax(-1), labels)
        yield Prediction(next(iter(found)), found)


def logits_of(module: nn.Module, inputs: Inputs, device: str) -> Iterator[torch.Tensor]:
    """Yield the logits of every row, float64 on the CPU, by a model in evaluation mode."""
    for positions in torch.split(torch.arange(len(inputs)), portion(ROWS, device)):
        with torch.no_grad():
            logits = module(**inputs.batch(positions.numpy(), device)).logits
        yield from logits.double().cpu()


def ordered(probabilities: torch.Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Return the probability of every label, the likeliest first."""
    order = probabilities.argsort(descending=True, stable=True).tolist()
    return {labels[label]: float(probabilities[label]) for label in order}

"""The number of each row, by a tuned model with one output."""

from collections.abc import Iterator

from torch import nn

from task.data.rows import Inputs
from task.prediction.answer import Prediction
from task.prediction.classification import logits_of


def numbers(module: nn.Module, inputs: Inputs, device: str) -> Iterator[Prediction]:
    """Yield the number that a model in evaluation mode puts out for every row."""
    for row in logits_of(module, inputs, device):
        yield Prediction(float(row[0]))

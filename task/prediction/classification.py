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
    for positions in torch.split(torch.arange(len(inputs)), portion(ROWS, device)):
        with torch.no_grad():
            logits = module(**inputs.batch(positions.numpy(), device)).logits
        for row in logits.double().softmax(-1).cpu():
            order = row.argsort(descending=True, stable=True).tolist()
            found = {labels[label]: float(row[label]) for label in order}
            yield Prediction(labels[order[0]], found)

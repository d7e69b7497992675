"""The labels of each row, any number of them, by a tuned model with a logit for every label."""

from collections.abc import Iterator, Sequence

from torch import nn

from task.data.rows import Inputs
from task.prediction.answer import Prediction
from task.prediction.classification import logits_of, ordered


def label_sets(
    module: nn.Module, inputs: Inputs, labels: Sequence[str], separator: str, device: str
) -> Iterator[Prediction]:
    """Yield the labels whose logit is above 0, in their order, with `separator` between them; empty: none."""
    for logits in logits_of(module, inputs, device):
        said = [label for label, logit in zip(labels, logits.tolist(), strict=True) if logit > 0]
        yield Prediction(separator.join(said), ordered(logits.sigmoid(), labels))

"""The label of every word of rows, by a tuned model that classifies tokens."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from task.data.rows import IGNORED, Inputs
from task.prediction.answer import Prediction
from task.prediction.classification import ROWS
from task.training.parallel_evaluation import portion

UNREAD = "_"  # in place of the label of a word beyond data.max-length, or without a token


def labels_of_words(
    module: nn.Module, inputs: Inputs, counts: Sequence[int], labels: Sequence[str], device: str
) -> Iterator[Prediction]:
    """Yield the labels of every row, one for each of its `counts` words, by a model in evaluation mode. The inputs have
    as label of a word's first token the number of the word."""
    for positions in torch.split(torch.arange(len(inputs)), portion(ROWS, device)):
        batch = inputs.batch(positions.numpy(), device)
        words = batch.pop("labels")
        with torch.no_grad():
            said = module(**batch).logits[:, -words.shape[1] :].argmax(-1)  # after the logits of soft prompts
        for row, own, codes in zip(positions.tolist(), words.tolist(), said.tolist(), strict=True):
            found = [UNREAD] * counts[row]
            for word, code in zip(own, codes, strict=True):
                if word != IGNORED:
                    found[word] = labels[code]
            yield Prediction(" ".join(found))

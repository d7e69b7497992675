"""Labels of rows, by a tuned classifier, and held-out rows beside them, to be looked at."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from task.data.encoding.texts import tokenizer_in
from task.data.rows import Inputs, Pixels, Rows
from task.prediction.answer import Classified, Prediction
from task.prediction.outputs import outputs
from task.seeds import derive
from task.training.parallel_evaluation import portion

ROWS = 256  # scored at a time on an accelerator
LONGEST = 96  # pixels of an image's longer side, in a report


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


def classified(module: nn.Module, base: Path, rows: Rows, count: int, device: str) -> list[Classified]:
    """Return at most `count` of these rows with what a model in evaluation mode, of the base in folder `base`, says of
    them. They are drawn at random: the same ones at every call, whatever the seed of the run."""
    drawn = np.random.default_rng(derive("predictions")).choice(len(rows), min(count, len(rows)), replace=False)
    chosen = rows.select(np.sort(drawn))
    logits, _ = outputs(module, chosen, device)
    probabilities = torch.from_numpy(logits).softmax(-1)
    found = zip(legible(chosen, base), chosen.labels, probabilities, strict=True)
    return [
        Classified(row, rows.names[label], rows.names[int(own.argmax())], float(own.max())) for row, label, own in found
    ]


def legible(rows: Rows, base: Path) -> Iterator[str]:
    """Yield the rows of a classifier as people read them: the text of the tokens, or the pixels as a data URL. It is
    what the model in folder `base` sees: cut, in lower case or of few pixels where it is."""
    everything = rows.select(np.arange(len(rows)))
    if isinstance(rows.inputs, Pixels):
        assert everything.indices is not None
        yield from map(_url, rows.inputs.values[everything.indices])
        return
    tokenizer = tokenizer_in(base)
    for place in range(len(rows)):
        yield tokenizer.decode(rows.batch([place])["input_ids"][0], skip_special_tokens=True).strip()


def _url(pixels: NDArray[np.uint8]) -> str:
    """Return an image (C, H, W) as a data URL."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((LONGEST, LONGEST))
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

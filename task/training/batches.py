"""The batches of rows of the local steps."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from task.config import TaskConfig

TOGETHER = 50  # batches whose rows are sorted by length, as in transformers' `LengthGroupedSampler`


class TooFewRows(ValueError):
    """Rows that make no batch. The message says at most how many rows there are."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


class Unsuited(ValueError):
    """A way of training that does not fit a model. The message names both and is public."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


def steps_of(config: TaskConfig, rows: int, least: int = 1) -> int:
    """Return the number of local steps in a round for so many rows, in batches of at least `least` rows."""
    return config.local_steps or per_epoch(config, rows, least) * config.local_epochs


def per_epoch(config: TaskConfig, rows: int, least: int = 1) -> int:
    """Return the number of batches of `batch-size` rows; a rest of fewer than `least` rows joins the last batch."""
    whole, left = divmod(rows, config.batch_size)
    return whole + int(left >= least or (left > 0 and not whole))


def least_rows(module: nn.Module) -> int:
    """Return the fewest rows of a batch: 2 if a layer in training mode normalises over the batch, else 1."""
    return 2 if any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules()) else 1


def check_rows(config: TaskConfig, rows: int, least: int) -> None:
    """Raise TooFewRows if no batch can have `least` rows."""
    if config.batch_size < least:
        raise TooFewRows(
            f"batch-size = {config.batch_size}: this model normalises over the rows of a batch, which needs {least}"
        )
    if rows < least:
        raise TooFewRows(f"this model normalises over the rows of a batch, which needs {least}; there is {rows}")


def batches(
    config: TaskConfig, rows: int, seed: int, least: int = 1, lengths: NDArray[np.int64] | None = None
) -> Iterator[torch.Tensor]:
    """Yield the row positions of every local step: new random orders of all rows, one after another. With the `lengths`
    (rows,) of rows, those of a step are of similar length."""
    order = torch.Generator().manual_seed(seed)
    left, count = steps_of(config, rows, least), per_epoch(config, rows, least)
    sizes = [config.batch_size] * (count - 1) + [rows - config.batch_size * (count - 1)]
    while left:
        drawn = torch.randperm(rows, generator=order)
        epoch = torch.split(drawn, sizes) if lengths is None else _grouped(drawn, lengths, sizes, order)
        epoch = epoch[:left]
        yield from epoch
        left -= len(epoch)


def _grouped(
    drawn: torch.Tensor, lengths: NDArray[np.int64], sizes: list[int], random: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Return the batches of an epoch, from a random order of all rows: rows of a few batches at a time are sorted by
    length, and the batches come in random order, the last one, of another size, last."""
    together = sizes[0] * max(1, min(TOGETHER, len(sizes) // 4))
    parts = [part[torch.from_numpy(np.argsort(-lengths[part], kind="stable"))] for part in torch.split(drawn, together)]
    *whole, rest = torch.split(torch.cat(parts), sizes)
    return (*(whole[number] for number in torch.randperm(len(whole), generator=random)), rest)

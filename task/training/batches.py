"""The batches of rows of the local steps."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from task.config import TaskConfig


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


def batches(config: TaskConfig, rows: int, seed: int, least: int = 1) -> Iterator[torch.Tensor]:
    """Yield the row positions of every local step: new random orders of all rows, one after another."""
    order = torch.Generator().manual_seed(seed)
    left, count = steps_of(config, rows, least), per_epoch(config, rows, least)
    sizes = [config.batch_size] * (count - 1) + [rows - config.batch_size * (count - 1)]
    while left:
        epoch = torch.split(torch.randperm(rows, generator=order), sizes)[:left]
        yield from epoch
        left -= len(epoch)

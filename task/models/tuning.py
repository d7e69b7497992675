"""Apply the configured tuning to a fresh model, and say what it does not reach."""

import re

from torch import nn
from torch.nn.modules.conv import _ConvNd

from task.config import TaskConfig
from task.device import ran_out
from task.kinds import registry as kinds
from task.tunings import registry
from task.tunings.base import Head, Tuning, TuningError

LONGEST = 200  # characters of what a library says


def tuned(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Apply the tuning of `config` to a fresh model. Raises TuningError where it does not fit, whoever finds that."""
    tuning = config.tuning
    try:
        return tuning.apply(module, head, kinds.of(config), rank)
    except TuningError:
        raise
    except Exception as error:  # peft raises whatever it comes upon
        if ran_out(error):
            raise
        cause = f"{type(error).__name__}: {first_sentence(error)}".rstrip(": ")
        first, *_, last = registry.substitutes()
        other = first if first != tuning.name else last
        raise TuningError(
            f"tuning = '{tuning.name}' does not fit this model ({cause}); use tuning = '{other}'"
        ) from error


def first_sentence(error: Exception) -> str:
    """Return what a library says of an error, as far as one sentence of ours can hold it."""
    return re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")[:LONGEST]


def stacked(module: nn.Module, tuning: Tuning) -> list[str]:
    """Return what is to be said of matrices that a tuning of linear layers does not reach, as they are stacked in one
    parameter: the experts of a mixture are."""
    if not tuning.on_linear_layers:
        return []
    sizes = [
        parameter.numel()
        for layer in module.modules()
        for parameter in layer.parameters(recurse=False)
        if not isinstance(layer, _ConvNd) and parameter.ndim > 2 and parameter.shape[0] > 1
        if not parameter.requires_grad
    ]
    total = sum(parameter.numel() for parameter in module.parameters())
    if not sizes:
        return []
    everything = registry.substitutes()[-1]
    return [
        f"tuning = '{tuning.name}' leaves {sum(sizes):,} of {total:,} parameters frozen, which are no linear layers "
        f"but stacks of matrices, such as the experts of a mixture; tuning = '{everything}' trains them"
    ]

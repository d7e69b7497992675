"""Apply the configured tuning to a new model, and report what it does not reach."""

import re

from torch import nn
from torch.nn.modules.conv import _ConvNd

from task.config import TaskConfig
from task.device import ran_out
from task.kinds import registry as kinds
from task.tunings import registry
from task.tunings.base import Head, Tuning, TuningError

LONGEST = 200  # characters of a library's error message


def tuned(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Apply the tuning of `config` to a new model. Raises TuningError if it does not fit, also for errors of peft."""
    tuning = config.tuning
    try:
        return tuning.apply(module, head, kinds.of(config), rank)
    except TuningError:
        raise
    except Exception as error:  # peft raises errors of many types
        if ran_out(error):
            raise
        cause = f"{type(error).__name__}: {first_sentence(error)}".rstrip(": ")
        first, *_, last = registry.substitutes()
        other = first if first != tuning.name else last
        raise TuningError(
            f"tuning = '{tuning.name}' does not fit this model ({cause}); use tuning = '{other}'"
        ) from error


def first_sentence(error: Exception) -> str:
    """Return the first sentence of a library's error message, short enough to quote."""
    return re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")[:LONGEST]


def stacked(module: nn.Module, tuning: Tuning) -> list[str]:
    """Return notices on matrices that a tuning of linear layers does not reach because they are stacked in one
    parameter, such as the experts of a mixture."""
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

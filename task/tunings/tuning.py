"""Tunings: which parameters train. Each is a function that marks (or adds) them on a fresh model.

A classifier's head always trains along: a fresh one must be learned, and a pretrained one must follow its features. The
output embedding of a causal language model is pretrained like the rest, and often is the input embedding too; it does
not train along.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd

from task.config import TaskConfig
from task.device import ran_out
from task.tunings.bottleneck import adapter
from task.tunings.ia3 import ia3
from task.tunings.low_rank import dora, lora
from task.tunings.norms import norm
from task.tunings.scale_shift import ssf
from task.tunings.soft_prompts import prefix, prompt
from task.tunings.trainable import Head, TuningError, first_sentence, inside, mark

__all__ = ["TUNINGS", "Head", "Tuning", "TuningError", "tuned"]

Tuning = Callable[[nn.Module, Head, TaskConfig, int], nn.Module]


def full(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Everything trains. Saved as a transformers folder."""
    return mark(module, lambda name: True)


def bias(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Every bias term outside the head trains (BitFit; Ben Zaken et al., arXiv 2106.10199), and a classifier's head.

    Raises TuningError where nothing is left to train: many language models have no bias terms. Saved as a transformers
    folder.
    """
    return mark(module, lambda name: head.along if inside(name, head.modules) else name.endswith("bias"))


def head(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Only the head trains (a linear probe). Of a causal model that is the output embedding; where they are tied, it is
    the input embedding too. Saved as a transformers folder.
    """
    return mark(module, lambda name: inside(name, head.modules))


TUNINGS: dict[str, Tuning] = {
    "full": full,
    "lora": lora,
    "bias": bias,
    "head": head,
    "norm": norm,
    "dora": dora,
    "ia3": ia3,
    "prompt": prompt,
    "prefix": prefix,
    "adapter": adapter,
    "ssf": ssf,
}


def tuned(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Apply the tuning of `config` to a fresh model. Raises TuningError where it does not fit, whoever finds that."""
    try:
        return TUNINGS[config.tuning](module, head, config, rank)
    except TuningError:
        raise
    except Exception as error:  # peft raises whatever it comes upon
        if ran_out(error):
            raise
        cause = f"{type(error).__name__}: {first_sentence(error)}".rstrip(": ")
        other = "full" if config.tuning == "lora" else "lora"
        raise TuningError(
            f"tuning = '{config.tuning}' does not fit this model ({cause}); use tuning = '{other}'"
        ) from error


def stacked(module: nn.Module, tuning: str) -> list[str]:
    """Return what is to be said of matrices that a tuning of linear layers does not reach, as they are stacked in one
    parameter: the experts of a mixture are."""
    if tuning not in ("lora", "dora", "ia3", "ssf"):
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
    return [
        f"tuning = '{tuning}' leaves {sum(sizes):,} of {total:,} parameters frozen, which are no linear layers but "
        "stacks of matrices, such as the experts of a mixture; tuning = 'full' trains them"
    ]

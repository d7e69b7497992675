"""Tunings: which parameters train. Each is a function that marks (or adds) them on a fresh model.

A classifier's head always trains along: a fresh one must be learned, and a pretrained one must follow its features. The
output embedding of a causal language model is pretrained like the rest, and often is the input embedding too; it does
not train along.
"""

from collections.abc import Callable

from torch import nn

from task.bottleneck import adapter
from task.config import TaskConfig
from task.ia3 import ia3
from task.low_rank import dora, lora
from task.norms import norm
from task.scale_shift import ssf
from task.soft_prompts import prefix, prompt
from task.trainable import Head, TuningError, inside, mark

__all__ = ["TUNINGS", "Head", "Tuning", "TuningError"]

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

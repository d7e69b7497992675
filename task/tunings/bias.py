"""Bias tuning (BitFit): the bias terms."""

from dataclasses import dataclass

from torch import nn

from task.tunings.base import TRANSFORMERS, Head, TaskKind, Tuning
from task.tunings.parts.trainable import inside, set_trainable


@dataclass(frozen=True)
class Bias(Tuning):
    """BitFit (Ben Zaken et al., arXiv 2106.10199): every bias term outside the head trains, and a classifier's head.

    Models without bias terms, as many language models are, are refused.
    """

    adds = False
    in_place = True
    substitute = 2
    usual_adamw = (1e-5, 2e-2)
    usual_sgd = (1e-4, 1e1)
    new_head_adamw = 10.0

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        return set_trainable(module, lambda name: head.along if inside(name, head.modules) else name.endswith("bias"))

    def saved_as(self, kind: TaskKind) -> str:
        return TRANSFORMERS

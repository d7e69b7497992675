"""Head tuning (a linear probe): only what the model ends in."""

from dataclasses import dataclass

from torch import nn

from task.tunings.base import TRANSFORMERS, Head, TaskKind, Tuning
from task.tunings.parts.trainable import inside, set_trainable


@dataclass(frozen=True)
class HeadTuning(Tuning):
    """Only the head trains. Of a causal language model that is the output embedding, and where the two are tied the
    input embedding too."""

    adds = False
    in_place = True
    substitute = 3
    usual_adamw = (1e-4, 1e-1)
    usual_sgd = (1e-4, 1e2)

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        return set_trainable(module, lambda name: inside(name, head.modules))

    def saved_as(self, kind: TaskKind) -> str:
        return TRANSFORMERS

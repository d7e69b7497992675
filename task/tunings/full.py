"""Full fine-tuning: everything trains."""

from dataclasses import dataclass

from torch import nn

from task.tunings.base import TRANSFORMERS, Head, TaskKind, Tuning
from task.tunings.parts.trainable import set_trainable


@dataclass(frozen=True)
class Full(Tuning):
    """Full fine-tuning; the running statistics of normalisation layers are exchanged too."""

    adds = False
    in_place = True
    running_statistics = True
    substitute = 4
    usual_adamw = (1e-6, 1e-3)
    usual_sgd = (1e-5, 1.0)
    new_head_adamw = 300.0

    @property
    def quantizable(self) -> bool:
        return False

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        return set_trainable(module, lambda name: True)

    def saved_as(self, kind: TaskKind) -> str:
        return TRANSFORMERS

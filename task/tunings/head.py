"""Head tuning (a linear probe): only the head trains."""

from dataclasses import dataclass

from torch import nn

from task.tunings.base import TRANSFORMERS, Head, TaskKind, Tuning
from task.tunings.parts.trainable import inside, set_trainable


@dataclass(frozen=True)
class HeadTuning(Tuning):
    """A linear probe: only the head trains. The head of a causal language model is the output embedding, and with tied
    embeddings the input embedding too."""

    adds = False
    in_place = True
    substitute = 3
    usual_adamw = (1e-4, 1e-1)
    usual_sgd = (1e-4, 1e2)

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        return set_trainable(module, lambda name: inside(name, head.modules))

    def saved_as(self, kind: TaskKind) -> str:
        return TRANSFORMERS

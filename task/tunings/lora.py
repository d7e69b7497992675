"""LoRA: low-rank factors on linear layers, by peft."""

from dataclasses import dataclass

from torch import nn

from task.tunings.base import Head, TaskKind
from task.tunings.parts.low_rank import LowRank


@dataclass(frozen=True)
class Lora(LowRank):
    """LoRA (Hu et al., arXiv 2106.09685) of one rank on the targeted linear layers; a classifier's head trains too.

    peft scales the product of the factors by lora_alpha / r. alpha is set so that this equals `lora.scaling` for any
    rank. A node that trains fewer ranks has smaller factors in the same layers. The product is zero at the start, so
    the model is the base.
    """

    has_ranks = True
    substitute = 1

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        return self.adapted(module, head, rank)

    def budgets(self) -> tuple[int, ...]:
        return self.ranks

    def candidates(self) -> tuple[int, ...]:
        return self.auto_ranks

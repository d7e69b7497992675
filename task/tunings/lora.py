"""LoRA: low-rank factors on linear layers and convolutions, by peft."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from task.tunings.base import Head, TaskKind
from task.tunings.parts.low_rank import PISSA, LowRank
from task.tunings.parts.principal import check_rank, principal

PREFIX = "base_model.model."  # of all names in peft's file


@dataclass(frozen=True)
class Lora(LowRank):
    """LoRA (Hu et al., arXiv 2106.09685) of one rank on the targeted layers; a classifier's head trains too.

    peft scales the product of the factors by lora_alpha / r. Its lora_alpha is set so that this is one factor for any
    rank. A node that trains fewer ranks has smaller factors in the same layers. The product is zero at the start, so
    the model is the base.

    On a convolution, A is one with `rank` outputs and B a 1 x 1 convolution of them (peft's). On the wire both are
    matrices, rank x (inputs * height * width) and outputs x rank. Convolutions with groups or dilation get none.

    With `lora.init` = "pissa" the factors start as the largest singular values of the layer's weight, and the base
    gives them up (PiSSA, Meng et al., arXiv 2404.02948; in federations FeDeRA, Yan et al., arXiv 2404.18848):

        W_0 ~ U_r S_r V_r^T,   B = U_r (S_r / s)^(1/2),   A = (S_r / s)^(1/2) V_r^T,   base W_0 - s B A

    The function at the start is the base's, up to rounding. The server computes the factors, and every node is sent
    them once. All nodes have the same rank: a smaller one would lack what the base gave up. The saved adapter has twice
    the rank, [B, -B_start] and [A; A_start], so that it fits the base as it was.
    """

    has_ranks = True
    on_convolutions = True
    substitute = 1

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        adapted = self.adapted(module, head, rank)
        if self.init == PISSA:
            check_rank(adapted, rank, "lora.init = 'pissa'", "lora.ranks")
        return adapted

    def budgets(self) -> tuple[int, ...]:
        return self.ranks

    def candidates(self) -> tuple[int, ...]:
        return self.auto_ranks

    @property
    def starts_from_base(self) -> bool:
        return self.init == PISSA

    @property
    def moves_base(self) -> bool:
        return self.init == PISSA

    def start(self, weights: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
        factors = {}
        for layer, weight in weights.items():
            u, s, vh = principal(weight, rank)
            root = (s / self.product_scale()).sqrt()
            factors[f"{layer}.lora_B.weight"] = (u * root).float().contiguous()
            factors[f"{layer}.lora_A.weight"] = (root[:, None] * vh).float().contiguous()
        return factors

    def saved(
        self, tensors: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        values, settings = super().saved(tensors, start)
        if not start:
            return values, settings
        rank = 0
        for name, first in start.items():
            own = values[PREFIX + name]
            first = first.to(own).reshape(len(first), -1, *own.shape[2:])
            outputs = ".lora_B." in name
            values[PREFIX + name] = torch.cat([own, -first], dim=1) if outputs else torch.cat([own, first])
            rank = 2 * first.shape[1 if outputs else 0]
        return values, {"r": rank, "lora_alpha": self.product_scale() * rank}

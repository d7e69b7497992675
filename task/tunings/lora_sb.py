"""LoRA-SB: a small square matrix between two frozen factors, which alone trains and travels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from task.schema import option
from task.tunings.base import MAX_RANK, Head, TaskKind, Tuning
from task.tunings.parts.low_rank import ALL
from task.tunings.parts.principal import principal
from task.tunings.parts.trainable import chosen, linear_layers

WIRE = {".lora_A.weight": ".sb_A.weight", ".lora_B.weight": ".sb_B.weight", ".lora_B.core": ".sb_R.weight"}


@dataclass(frozen=True)
class LoraSB(Tuning):
    """LoRA-SB and, averaged, Fed-SB (Singhal, Ponkshe, Vartak, Varshney, Vepakomma, arXiv 2502.15436):

        W' = W_0 + s B R A,   B = U_r and A = V_r^T of W_0's SVD, frozen,   R (rank x rank) trains

    R is all that is exchanged, rank^2 numbers a layer whatever its size. With FedAvg it is exact, as all nodes have
    the same B and A: sum_i p_i B R_i A = B (sum_i p_i R_i) A. A classifier's head trains too.

    Different here: the paper takes B and A from the SVD of a first full step on rows that the server has, and starts at
    that step. A server without rows takes them from W_0, and R is zero at the start, so the model is the base. The
    server computes B and A, and every node is sent them once. In a layer whose smaller side is below `lora-sb.rank`, R
    has that side: it then reaches every matrix. The saved folder is a plain LoRA adapter, with B R as its B.
    """

    on_linear_layers = True
    usual_adamw = (1e-4, 1e-1)
    usual_sgd = (1e-3, 1e2)

    rank: int = option(32, low=1, high=MAX_RANK, doc="rows of R; a layer's smaller side, where that is smaller")
    scaling: float = option(2.0, low=1e-6, doc="factor of the product B R A")
    dropout: float = option(0.0, low=0.0, high=0.9, doc="on the input of the adapters")
    targets: tuple[str, ...] = option(ALL, doc="module name endings that get adapters, separated by commas")

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        names = linear_layers(module, head, self.name)
        if self.targets != ALL:
            names = chosen(names, self.targets, "lora-sb.targets")
        ranks = {name: min(self.rank, *module.get_submodule(name).weight.shape) for name in names}  # type: ignore
        adapted: Any = get_peft_model(
            module,
            LoraConfig(
                r=self.rank,
                lora_alpha=self.scaling * self.rank,
                rank_pattern={name: own for name, own in ranks.items() if own != self.rank},
                alpha_pattern={name: self.scaling * own for name, own in ranks.items() if own != self.rank},
                lora_dropout=self.dropout,
                target_modules=names,
                modules_to_save=head.trained,
                bias="none",
            ),
            autocast_adapter_dtype=True,
        )
        for layer in adapted.modules():
            if hasattr(layer, "lora_B"):
                layer.lora_A.requires_grad_(False)
                layer.lora_B["default"] = _Sandwich(layer.lora_B["default"])
        return adapted  # type: ignore[no-any-return]

    @property
    def starts_from_base(self) -> bool:
        return True

    def start(self, weights: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
        frozen = {}
        for layer, weight in weights.items():
            u, _, vh = principal(weight, self.rank)
            frozen[f"{layer}.sb_B.weight"] = u.float().contiguous()
            frozen[f"{layer}.sb_A.weight"] = vh.float().contiguous()
        return frozen

    def wire_name(self, name: str) -> str:
        for end, other in WIRE.items():
            if name.endswith(end):
                return name.removesuffix(end) + other
        return name

    def saved(
        self, tensors: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        values = dict(tensors)
        for name in tensors:
            if name.endswith(".lora_B.core"):
                outer = name.removesuffix("core") + "weight"
                values[outer] = values[outer] @ values.pop(name)
        return values, {}


class _Sandwich(nn.Linear):
    """B R in the place of LoRA's B: the product is made first, so that a saved adapter computes the same bits."""

    def __init__(self, b: nn.Linear) -> None:
        super().__init__(b.in_features, b.out_features, bias=False, device="meta")
        drawn = torch.randn_like(b.weight) / b.out_features**0.5  # until the start arrives: R = 0 needs a B to learn
        self.weight = nn.Parameter(drawn, requires_grad=False)
        self.core = nn.Parameter(torch.zeros(b.in_features, b.in_features, dtype=drawn.dtype, device=drawn.device))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs, self.weight @ self.core)

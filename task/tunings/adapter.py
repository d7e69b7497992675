"""Bottleneck adapters: a narrow residual network after every transformer block."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from task.schema import option
from task.tunings.base import OWN, Head, TaskKind, Tuning
from task.tunings.parts.reference import SWITCH
from task.tunings.parts.trainable import blocks, hidden_size, inside, set_trainable

ADAPTER = "adapter"  # the module's name in its block


class Bottleneck(nn.Module):
    """The map U gelu(D h + d) + u, with D of `width` rows. Zero at the start, as U and u are. At least float32."""

    def __init__(self, features: int, width: int, like: torch.Tensor) -> None:
        super().__init__()
        setattr(self, SWITCH, False)
        given: dict[str, Any] = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        self.down = nn.Linear(features, width, **given)
        self.up = nn.Linear(width, features, **given)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output (..., features) for `hidden` (..., features), in the dtype of `hidden`."""
        wide = hidden.to(self.down.weight.dtype)
        return self.up(nn.functional.gelu(self.down(wide))).to(hidden.dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Adapter(Tuning):
    """Adapters (Houlsby et al., arXiv 1902.00751), one after every block as FedPEFT (Sun et al., arXiv 2210.01708) has
    them: h -> h + U gelu(D h + d) + u, D with `adapter.width` rows. A classifier's head trains too.

    U and u are zero at the start, so the model is the base. U and u learn from the first step, D and d from the second.
    """

    usual_adamw = (1e-5, 1e-2)
    usual_sgd = (1e-4, 1e1)
    new_head_adamw = 10.0

    width: int = option(16, low=1, high=8192, doc="features in the middle of an adapter")

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        layers = blocks(module, "adapter")
        features = hidden_size(module, layers, "adapter")
        for layer in layers:
            layer.add_module(ADAPTER, Bottleneck(features, self.width, next(layer.parameters())))
            layer.register_forward_hook(_adapt)
        return set_trainable(module, lambda name: f".{ADAPTER}." in name or inside(name, head.trained))

    def saved_as(self, kind: TaskKind) -> str:
        return OWN


def _adapt(layer: Any, inputs: Any, output: Any) -> Any:
    if getattr(layer.adapter, SWITCH):
        return output
    hidden, *others = output if isinstance(output, tuple) else (output,)
    adapted = hidden + layer.adapter(hidden)
    return (adapted, *others) if isinstance(output, tuple) else adapted

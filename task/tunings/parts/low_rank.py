"""Low-rank factors on linear layers, by peft: the options and the construction that LoRA and DoRA share."""

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from task.schema import option
from task.tunings.base import AUTO, MAX_RANK, Head, Tuning
from task.tunings.parts.trainable import chosen, linear_layers

ALL = ("all-linear",)
DEFAULT, PISSA = "default", "pissa"
FEW = 2.0  # factor on the largest usual learning rate if only some layers have adapters


@dataclass(frozen=True)
class LowRank(Tuning, ABC):
    """A tuning that adds scaling * B A to the weights of linear layers. All such tunings share one options table."""

    table: ClassVar[str] = "lora"
    on_linear_layers = True
    usual_adamw = (1e-5, 5e-3)
    usual_sgd = (1e-4, 1e1)
    new_head_adamw = 30.0

    ranks: tuple[int, ...] = option(
        (8,),
        low=1,
        high=MAX_RANK,
        empty=AUTO,
        doc='rank budgets of nodes without their own, dealt in turn: "8", "2,4,8"; "auto": by a trial; dora: one',
    )
    auto_ranks: tuple[int, ...] = option(
        (2, 4, 8, 16, 32, 64), low=1, high=MAX_RANK, doc='candidates for a rank that is "auto", ascending'
    )
    scaling: float = option(2.0, low=1e-6, doc="factor of the low-rank product: alpha over the global rank")
    dropout: float = option(0.0, low=0.0, high=0.9, doc="on the input of the adapters")
    init: str = option(
        DEFAULT,
        choices=(DEFAULT, PISSA),
        doc="where factors start: default (their product is zero) or pissa (the base's largest singular values)",
    )
    targets: tuple[str, ...] = option(ALL, doc="module name endings that get adapters, separated by commas")

    def adapted(self, module: nn.Module, head: Head, rank: int, **more: Any) -> nn.Module:
        """Return the model with peft's adapters on the targeted layers; `more` are settings of its LoraConfig."""
        from peft import LoraConfig, get_peft_model

        linear = linear_layers(module, head, self.name)
        return get_peft_model(  # type: ignore[no-any-return]
            module,
            LoraConfig(
                r=rank,
                lora_alpha=self.scaling * rank,
                lora_dropout=self.dropout,
                target_modules=linear if self.targets == ALL else chosen(linear, self.targets, "lora.targets"),
                modules_to_save=head.trained,
                bias="none",
                **more,
            ),
            autocast_adapter_dtype=True,
        )

    def problems(self) -> list[str]:
        candidates = self.auto_ranks
        if candidates and list(candidates) == sorted(set(candidates)):
            return []
        return [f"lora.auto-ranks must be ascending ranks, such as '2,4,8', not '{candidates!r}'"]

    def product_scale(self) -> float:
        return self.scaling

    def usual_rates(self, optimizer: str) -> tuple[float, float]:
        low, high = super().usual_rates(optimizer)
        return low, high if self.targets == ALL else high * FEW

"""Low-rank factors on layers, by peft: the options and the construction that LoRA and DoRA share."""

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from task.schema import option
from task.tunings.base import AUTO, MAX_RANK, Head, Tuning, TuningError
from task.tunings.parts.convolutions import as_matrices, convolutions
from task.tunings.parts.trainable import chosen, linear_layers

ALL, EVERY = ("all-linear",), ("all",)
DEFAULT, PISSA = "default", "pissa"
COPIES = (".modules_to_save.", ".original_module.")  # in peft's names of a head that trains
SCALING = 2.0
FEW = 2.0  # factor on the largest usual learning rate if only some layers have adapters


@dataclass(frozen=True)
class LowRank(Tuning, ABC):
    """A tuning that adds scaling * B A to the weights of linear layers. All such tunings share one options table.

    The scaling of the product is one for all nodes: `lora.scaling`, or alpha / r with r the largest of `lora.ranks`, or
    alpha / sqrt(r) (rsLoRA, Kalajdzievski, arXiv 2312.03732). A node that trains fewer ranks has it too, as products
    could not be averaged otherwise.
    """

    table: ClassVar[str] = "lora"
    on_convolutions: ClassVar[bool] = False  # whether convolutions may have factors too
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
    scaling: float = option(SCALING, low=1e-6, doc="factor of the low-rank product, the same for every rank")
    alpha: float = option(
        0.0, low=0.0, doc="instead of lora.scaling: the factor is alpha over the largest of lora.ranks; 0: lora.scaling"
    )
    rslora: bool = option(False, doc="of lora.alpha: the factor is alpha over the square root of that rank (rsLoRA)")
    dropout: float = option(0.0, low=0.0, high=0.9, doc="on the input of the adapters")
    init: str = option(
        DEFAULT,
        choices=(DEFAULT, PISSA),
        doc="where factors start: default (their product is zero) or pissa (the base's largest singular values)",
    )
    targets: tuple[str, ...] = option(
        ALL,
        doc="module name endings that get adapters, separated by commas; all-linear; all: lora's convolutions too",
    )
    bias: str = option(
        "none",
        choices=("none", "all", "lora_only"),
        doc="biases that train and travel beside the factors: none, all, lora_only (of layers with adapters)",
    )

    def adapted(self, module: nn.Module, head: Head, rank: int, **more: Any) -> nn.Module:
        """Return the model with peft's adapters on the targeted layers; `more` are settings of its LoraConfig."""
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(
            module,
            LoraConfig(
                r=rank,
                lora_alpha=self.product_scale() * rank,
                lora_dropout=self.dropout,
                target_modules=self._targeted(module, head),
                modules_to_save=head.trained or None,  # a language model's has none: vLLM reads no others
                bias=self.bias,
                **more,
            ),
            autocast_adapter_dtype=True,
        )
        for name, parameter in adapted.named_parameters():
            if COPIES[1] in name:  # peft would train its bias too
                parameter.requires_grad_(False)
        return as_matrices(adapted)

    def _targeted(self, module: nn.Module, head: Head) -> list[str]:
        """Return the names of the layers that get factors. Raises TuningError for none."""
        others = convolutions(module, head) if self.on_convolutions else []
        try:
            linear = linear_layers(module, head, self.name)
        except TuningError:
            if not others:
                raise
            linear = []
        if self.targets == EVERY:
            return linear + others
        if self.targets != ALL:
            noun = "linear layer or plain convolution" if others else "linear layer"
            return chosen(linear + others, self.targets, "lora.targets", noun)
        if not linear:
            raise TuningError(
                f"lora.targets = 'all-linear': this model has no linear layers outside its head, but {len(others)} "
                "convolutions; set lora.targets = 'all'"
            )
        return linear

    def problems(self) -> list[str]:
        found, candidates = [], self.auto_ranks
        if not candidates or list(candidates) != sorted(set(candidates)):
            found.append(f"lora.auto-ranks must be ascending ranks, such as '2,4,8', not '{candidates!r}'")
        if self.alpha and self.scaling != SCALING:
            found.append(
                f"lora.alpha = {self.alpha:g} and lora.scaling = {self.scaling:g} are two ways to say one thing; leave "
                "one of them out"
            )
        if self.alpha and not self.ranks:
            found.append(
                f"lora.alpha = {self.alpha:g} needs a rank to be divided by, and lora.ranks is '{AUTO}'; use "
                "lora.scaling, the factor itself"
            )
        if self.rslora and not self.alpha:
            found.append("lora.rslora says how lora.alpha is divided; set lora.alpha, or leave lora.rslora out")
        if self.targets == EVERY and not self.on_convolutions:
            found.append(
                f"lora.targets = 'all' is for tuning = 'lora'; tuning = '{self.name}' reaches no convolutions: set "
                "lora.targets = 'all-linear'"
            )
        return found

    @property
    def has_reference(self) -> bool:
        return super().has_reference and self.bias == "none"  # biases train in place

    def product_scale(self) -> float:
        if not self.alpha:
            return self.scaling
        rank = max(self.ranks)
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)

    def saved(
        self, tensors: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """Leave out what peft saves a second time with biases: those of both its copies of a head."""
        own = {name: tensor for name, tensor in tensors.items() if not any(copy in name for copy in COPIES)}
        return super().saved(own, start)

    def usual_rates(self, optimizer: str) -> tuple[float, float]:
        low, high = super().usual_rates(optimizer)
        return low, high if self.targets == ALL else high * FEW

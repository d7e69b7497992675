"""SSF: scaling and shifting of deep features, which folds into the weights of the plain model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from task.tunings.base import TRANSFORMERS, Head, TaskKind, Tuning, TuningError
from task.tunings.parts.reference import SWITCH
from task.tunings.parts.trainable import inside, is_linear, is_transposed, set_trainable

SCALE, SHIFT = "ssf_scale", "ssf_shift"  # the parameters' names in their layer


@dataclass(frozen=True)
class Ssf(Tuning):
    """SSF (Lian et al., arXiv 2210.08823, section 3.2): y = gamma * x + beta after every linear and layer-norm layer
    outside the head, with one gamma and one beta per feature. A classifier's head trains too.

    gamma is one and beta is zero at the start (the paper draws them nearby), so the model is the base. A layer without
    a bias gets no beta. A norm whose weight is not a plain factor (Gemma's) gets neither, because they could not be
    folded.
    """

    on_linear_layers = True
    folds = True
    usual_adamw = (1e-5, 2e-2)
    usual_sgd = (1e-4, 1e1)
    new_head_adamw = 10.0

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        layers = [m for n, m in module.named_modules() if _foldable(m) and not inside(n, head.modules)]
        if not layers:
            raise TuningError("tuning = 'ssf' needs linear or layer-norm layers, and this model has none; use 'full'")
        for layer in layers:
            weight: Any = layer.weight
            start = torch.ones(
                weight.shape[_axis(layer)], device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32)
            )
            layer.register_parameter(SCALE, nn.Parameter(start))
            if getattr(layer, "bias", None) is not None:
                layer.register_parameter(SHIFT, nn.Parameter(torch.zeros_like(start)))
            setattr(layer, SWITCH, False)
            layer.register_forward_hook(_modulate)
        return set_trainable(module, lambda name: name.endswith((SCALE, SHIFT)) or inside(name, head.trained))

    def saved_as(self, kind: TaskKind) -> str:
        return TRANSFORMERS

    def folded(self, module: nn.Module, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the head and the folded weights: W' = gamma W, b' = gamma b + beta, computed in float64."""
        values = {name: tensor for name, tensor in trained.items() if not name.endswith((SCALE, SHIFT))}
        for name, layer in module.named_modules():
            if hasattr(layer, SCALE):
                weight, scale = layer.weight.detach().double(), layer.ssf_scale.detach().double()
                values[f"{name}.weight"] = weight * (scale[:, None] if weight.ndim == 2 and not _axis(layer) else scale)
                if hasattr(layer, SHIFT):
                    values[f"{name}.bias"] = layer.bias.detach().double() * scale + layer.ssf_shift.detach()
        return values


def _modulate(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    if getattr(layer, SWITCH):
        return output
    scaled: torch.Tensor = output * layer.ssf_scale
    return (scaled + layer.ssf_shift if hasattr(layer, SHIFT) else scaled).to(output.dtype)


def _axis(layer: nn.Module) -> int:
    """Return the output axis of the layer's weight."""
    return int(is_transposed(layer))


def _foldable(layer: nn.Module) -> bool:
    """Return whether a factor on each output feature can be folded into the layer's weight."""
    if is_linear(layer):
        return True
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim != 1:
        return False
    return type(layer) in (nn.LayerNorm, nn.RMSNorm) or (type(layer).__name__.endswith("RMSNorm") and _factor(layer))


@torch.no_grad()
def _factor(layer: Any) -> bool:
    """Return whether twice the weight gives twice the output. Some classes compute with one plus the weight."""
    features = torch.linspace(-1, 1, len(layer.weight), dtype=layer.weight.dtype, device=layer.weight.device)[None]
    once = layer(features)
    layer.weight.mul_(2)
    twice = layer(features)
    layer.weight.div_(2)
    return torch.equal(twice, 2 * once)

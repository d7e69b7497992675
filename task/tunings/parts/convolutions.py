"""Low-rank factors on convolutions, as matrices: what reads the factors of a linear layer reads these too."""

from typing import Any

import torch
from torch import nn

from task.tunings.base import Head
from task.tunings.parts.trainable import inside

ADAPTER = "default"  # peft's name of the one adapter a model has


def convolutions(module: nn.Module, head: Head) -> list[str]:
    """Return the names of the two-dimensional convolutions outside the head that peft's factors fit: without groups,
    without dilation, padded with zeros, and of torch's own class."""
    return [name for name, layer in module.named_modules() if _fits(layer) and not inside(name, head.modules)]


def as_matrices(adapted: nn.Module) -> nn.Module:
    """Turn peft's factors of convolutions into matrices: A is rank x (inputs * height * width) and B is outputs x
    rank, so that B A, reshaped, is what they add to the weight."""
    for layer in adapted.modules():
        factors = [getattr(layer, name, None) for name in ("lora_A", "lora_B")]
        for factor in factors:
            if isinstance(factor, nn.ModuleDict) and isinstance(factor[ADAPTER], nn.Conv2d):
                factor[ADAPTER] = _MatrixConv2d(factor[ADAPTER])
    return adapted


def _fits(layer: Any) -> bool:
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros"
    return plain and layer.groups == 1 and set(layer.dilation) == {1}


class _MatrixConv2d(nn.Conv2d):
    """A convolution whose weight is a matrix, outputs x (inputs * height * width). Saved, it has a convolution's four
    dimensions again, as peft reads it."""

    def __init__(self, plain: Any) -> None:
        super().__init__(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,
            plain.stride,
            plain.padding,
            bias=False,
            device="meta",
        )
        self.weight = nn.Parameter(plain.weight.detach().flatten(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self._conv_forward(inputs, self._kernel(self.weight), None)
        return outputs

    def _kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight in a convolution's shape, outputs x inputs x height x width."""
        return weight.reshape(len(weight), -1, *self.kernel_size)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self._kernel(destination[prefix + "weight"])

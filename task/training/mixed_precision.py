"""Steps in 16 bits, in two ways.

Weights of 16 bits are updated as 32-bit copies, which are rounded into the model. Weights of 32 bits may be multiplied
in bfloat16 (`autocast`).

In 16 bits small steps are rounded away. In float16 AdamW's squared gradients become zero, and it divides by them.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from task.device import kind


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """Return the context of one step on a device, by the key `precision`: bfloat16 for products, with parameters,
    gradients, sums and the optimizer as they are; or none. torch keeps what it has rounded until the context ends, so a
    second step in it would start from the parameters of the first. `auto` is none until it is chosen
    (`task.training.chosen_precision`).
    """
    return torch.autocast(kind(device), torch.bfloat16) if precision == "bfloat16" else nullcontext()


class Masters:
    """The parameters that an optimiser updates: a model's own if they have 32 bits, else 32-bit copies."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._pairs = [(own, _wide(own)) for own in parameters]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters to update, at least float32, in the model's order."""
        return [wide for _, wide in self._pairs]

    def take_gradients(self) -> None:
        """Add the gradients of the model's parameters to those of the copies, so that sums are made in 32 bits."""
        for own, wide in self._pairs:
            if own is not wide and own.grad is not None:
                grad = own.grad.to(wide.dtype)
                wide.grad = grad if wide.grad is None else wide.grad + grad
                own.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies that had a gradient into the model."""
        for own, wide in self._pairs:
            if own is not wide and wide.grad is not None:
                own.copy_(wide)


def _wide(own: nn.Parameter) -> nn.Parameter:
    dtype = torch.promote_types(own.dtype, torch.float32)
    return own if dtype == own.dtype else nn.Parameter(own.detach().to(dtype))

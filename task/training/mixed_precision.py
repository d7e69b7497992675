"""Optimiser steps for 16-bit weights: they are made on 32-bit copies, which are rounded into the model.

In 16 bits small steps are rounded away. In float16 AdamW's squared gradients become zero, and it divides by them.
"""

from collections.abc import Iterable

import torch
from torch import nn


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
        """Round the copies into the model."""
        for own, wide in self._pairs:
            if own is not wide:
                own.copy_(wide)


def _wide(own: nn.Parameter) -> nn.Parameter:
    dtype = torch.promote_types(own.dtype, torch.float32)
    return own if dtype == own.dtype else nn.Parameter(own.detach().to(dtype))

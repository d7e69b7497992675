"""Named tensors, and the sums and differences of them that an exchange is made of."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch

Tensors = dict[str, torch.Tensor]


def corner(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The view of the leading `shape` of a tensor."""
    for axis, extent in enumerate(shape):
        if extent != tensor.shape[axis]:
            tensor = tensor.narrow(axis, 0, extent)
    return tensor


def added(start: Mapping[str, torch.Tensor], change: Mapping[str, torch.Tensor]) -> Tensors:
    """start + change where there is a change, rounded once to start's dtype."""
    return {name: (t + change[name]).to(t.dtype) if name in change else t for name, t in start.items()}


def difference(after: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> Tensors:
    """after - before, in before's dtype, on the CPU."""
    return {name: (after[name].detach().cpu() - tensor).to(tensor.dtype) for name, tensor in before.items()}


def proximal(live: Mapping[str, torch.Tensor], mu: float) -> Callable[[], torch.Tensor]:
    """(mu / 2) ||w - w'||^2 over all of `live`, with w' where they are at this call; a number with gradients.

    Li et al., arXiv 1812.06127.
    """
    anchor = {name: tensor.detach().clone() for name, tensor in live.items()}
    return lambda: mu / 2 * torch.stack([(live[name] - tensor).square().sum() for name, tensor in anchor.items()]).sum()


def raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in row-major order; those of a contiguous tensor on the CPU itself, not a copy."""
    if not tensor.numel():
        return memoryview(b"")  # an empty tensor may have strides that no view of bytes allows
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def snapshot(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies on the CPU that later training does not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """The Euclidean norm of all numbers together, in float64."""
    parts = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors)
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))

"""Named tensors, and their sums and differences, which updates consist of."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch

from task.storage.paging import release_pages

Tensors = dict[str, torch.Tensor]


def corner(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the view of the leading `shape` of a tensor."""
    for axis, extent in enumerate(shape):
        if extent != tensor.shape[axis]:
            tensor = tensor.narrow(axis, 0, extent)
    return tensor


def added(start: Mapping[str, torch.Tensor], change: Mapping[str, torch.Tensor]) -> Tensors:
    """Return start + change for the tensors that have a change, rounded once to start's dtype."""
    return {name: (t + change[name]).to(t.dtype) if name in change else t for name, t in start.items()}


def difference(after: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> Tensors:
    """Return after - before, in before's dtype, on the CPU."""
    return {name: (after[name].detach().cpu() - tensor).to(tensor.dtype) for name, tensor in before.items()}


def change_since(before: Tensors, after: Mapping[str, torch.Tensor]) -> Tensors:
    """Return after - before as `difference` does, in the place of `before`: of a whole model, its values before and the
    change would both be in memory."""
    for name, tensor in before.items():
        tensor.copy_(after[name].detach().cpu() - tensor)
        release_pages()
    return before


def proximal(live: Mapping[str, torch.Tensor], mu: float) -> Callable[[], torch.Tensor]:
    """Return a function for (mu / 2) ||w - w'||^2 over all of `live`, a number with gradients; w' are the values at
    this call.

    Li et al., arXiv 1812.06127.
    """
    anchor = {name: tensor.detach().clone() for name, tensor in live.items()}
    return lambda: mu / 2 * torch.stack([(live[name] - tensor).square().sum() for name, tensor in anchor.items()]).sum()


def raw(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's bytes in row-major order; for a contiguous tensor on the CPU, its own bytes without a
    copy."""
    if not tensor.numel():
        return memoryview(b"")  # an empty tensor may have strides that a view of bytes refuses
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def snapshot(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return copies on the CPU that later training does not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """Return the Euclidean norm of all numbers together, in float64."""
    parts = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors)
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))

"""The norm of an update, over all its tensors as one vector, and its bound."""

from collections.abc import Mapping

import torch

from strategies.algebra.tensors import Tensors


def norm(tensors: Mapping[str, torch.Tensor]) -> float:
    """Return the Euclidean norm of all tensors together, in float64."""
    squares = [tensor.double().square().sum() for tensor in tensors.values()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def clipped(tensors: Tensors, bound: float) -> Tensors:
    """Return the tensors, all scaled by min(1, bound / norm); those within the bound are unchanged, bit for bit.

    The result is never beyond the bound, however its numbers are rounded to their dtypes: all must be floating.
    """
    length = norm(tensors)
    if length <= bound:
        return tensors
    step = max(torch.finfo(tensor.dtype).eps for tensor in tensors.values())
    factor = bound / length
    while True:
        scaled = {name: (tensor.double() * factor).to(tensor.dtype) for name, tensor in tensors.items()}
        if norm(scaled) <= bound:
            return scaled
        factor *= 1.0 - step

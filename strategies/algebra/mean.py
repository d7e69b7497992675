"""Weighted sums of named tensors, in float64 and in constant memory."""

from collections.abc import Mapping

import torch

from strategies.algebra.tensors import Tensors, corner


class WeightedSum:
    """A running sum of w * x over named tensors.

    Terms may be smaller than the sum along any axis: they are then its leading corner, as a rank-r factor is in a
    factor of larger rank. Sums are kept in float64 and rounded once at the end, so that the order of terms does not
    affect float32 results and memory does not grow with the number of terms.
    """

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        """Start an empty sum; `like` has the names, full shapes and dtypes of the results."""
        self._dtypes = {name: tensor.dtype for name, tensor in like.items()}
        self.sums: Tensors = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in like.items()}
        self.total = 0.0

    def add(self, term: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add `weight` times `term`; names that the sum lacks are an error."""
        for name, tensor in term.items():
            corner(self.sums[name], tensor.shape).add_(tensor.detach().cpu(), alpha=weight)
        self.total += weight

    def mean(self) -> Tensors:
        """Return the sum over the total weight, in the dtypes of `like`."""
        return {n: (s / self.total).to(self._dtypes[n]) for n, s in self.sums.items()}

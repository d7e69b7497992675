"""The aggregation error: how far the result of a combination rule is from the mean that it stands for.

With adapters, nodes learn products B_i A_i, and the ideal is their weighted mean sum_i p_i B_i A_i. Rules that average
factors get something else. Per module and overall, the error is

    || B A - sum_i p_i B_i A_i ||_F / || sum_i p_i B_i A_i ||_F

It is computed through QR of the stacked factors; no matrix of a layer's size is ever formed.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from strategies.algebra.lowrank import ProductSum, factor_names, merged_pair, modules
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Entry

OVERALL = "overall"


class ErrorMeasurement:
    """A measurement of one round's aggregation error: it sees what every node trained, then reads the new state."""

    def __init__(self) -> None:
        self._means: dict[str, ProductSum] = defaultdict(ProductSum)
        self._weight = 0.0

    def see(self, trained: Tensors, weight: float) -> None:
        """Add what one node had after training, at whatever rank it trains; only factors count."""
        for module in modules(trained):
            self._means[module].add(weight, *_pair(trained, module))
        self._weight += weight

    def read(self, state: Tensors, merged: Sequence[Entry] = ()) -> dict[str, float]:
        """Return the relative errors by module, and `overall`; empty without factors, or if nothing was learned.

        `merged` are the entries that this round has put into the base: they count with the factors.
        """
        errors, sums = {}, [0.0, 0.0]
        for module, mean in self._means.items():
            off, norm = self._gap(mean, module, state, merged).norm(), mean.norm()
            sums = [sums[0] + off**2, sums[1] + norm**2]
            if norm:
                errors[module] = off / norm
        return {OVERALL: math.sqrt(sums[0] / sums[1]), **errors} if sums[1] else {}

    def _gap(self, mean: ProductSum, module: str, state: Tensors, merged: Sequence[Entry]) -> ProductSum:
        """Return the sum of the nodes' products minus the product that the state has."""
        gap = mean.plus(-self._weight, *_pair(state, module)) if _factors(state, module) else mean
        for entry in merged:
            if pair := merged_pair(entry.tensors, module):
                gap = gap.plus(-self._weight, *pair)
        return gap


def _factors(tensors: Tensors, module: str) -> bool:
    return any(name in tensors for name in factor_names(module))


def _pair(tensors: Tensors, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B and A of a module. A factor that is not exchanged is the same for all nodes, so any constant can replace
    it."""
    b, a = (tensors.get(name) for name in factor_names(module))
    if b is not None:
        return b, a if a is not None else torch.eye(b.shape[1])
    assert a is not None
    return torch.eye(a.shape[0]), a

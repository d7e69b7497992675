"""The exactness meter: how far a rule's aggregate is from what it stands for.

With adapters, what nodes learned are products B_i A_i, and what everybody wants is their weighted mean
sum_i p_i B_i A_i. Rules that average factors get something else. The meter reads, per module and overall,

    || B A - sum_i p_i B_i A_i ||_F / || sum_i p_i B_i A_i ||_F

through QR of the stacked factors; no matrix of a layer's size is ever formed.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from strategies.algebra.lowrank import ProductSum, factor_names, merged_pair, modules
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Entry

OVERALL = "overall"


class Meter:
    """Sees what every node trained, then reads the state that came of it."""

    def __init__(self) -> None:
        self._means: dict[str, ProductSum] = defaultdict(ProductSum)
        self._weight = 0.0

    def see(self, trained: Tensors, weight: float) -> None:
        """What one node held after training, at whatever rank it trains; only factors count."""
        for module in modules(trained):
            self._means[module].add(weight, *_pair(trained, module))
        self._weight += weight

    def read(self, state: Tensors, merged: Sequence[Entry] = ()) -> dict[str, float]:
        """Relative errors by module, and `overall`; empty where there are no factors or nothing was learned.

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
        """The sum of the nodes' products less what the state makes of it."""
        gap = mean.plus(-self._weight, *_pair(state, module)) if _factors(state, module) else mean
        for entry in merged:
            if pair := merged_pair(entry.tensors, module):
                gap = gap.plus(-self._weight, *pair)
        return gap


def _factors(tensors: Tensors, module: str) -> bool:
    return any(name in tensors for name in factor_names(module))


def _pair(tensors: Tensors, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A of a module. A factor that is not exchanged is the same for all: any constant does for it."""
    b, a = (tensors.get(name) for name in factor_names(module))
    if b is not None:
        return b, a if a is not None else torch.eye(b.shape[1])
    assert a is not None
    return torch.eye(a.shape[0]), a

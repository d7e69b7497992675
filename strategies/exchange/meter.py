"""The exactness meter: how far a rule's aggregate is from what it stands for.

With adapters, what nodes learned are products B_i A_i, and what everybody wants is their weighted mean
sum_i p_i B_i A_i. Rules that average factors get something else. The meter reads, per module and overall,

    || B A - sum_i p_i B_i A_i ||_F / || sum_i p_i B_i A_i ||_F

through QR of the stacked factors; no matrix of a layer's size is ever formed.
"""

import math
from collections import defaultdict

import torch

from strategies.algebra.lowrank import ProductSum, factor_names, modules, rank_axis, truncated
from strategies.algebra.tensors import Tensors, added

OVERALL = "overall"


class Meter:
    """Sees what every node trained, then reads the state that came of it."""

    def __init__(self) -> None:
        self._means: dict[str, ProductSum] = defaultdict(ProductSum)
        self._weight = 0.0

    def see(self, trained: Tensors, weight: float) -> None:
        """One node's factors after training, at whatever rank it trains."""
        for module in modules(trained):
            self._means[module].add(weight, *_pair(trained, module))
        self._weight += weight

    def read(self, state: Tensors) -> dict[str, float]:
        """Relative errors by module, and `overall`; empty where there are no factors or nothing was learned."""
        errors, sums = {}, [0.0, 0.0]
        for module, mean in self._means.items():
            off, norm = mean.plus(-self._weight, *_pair(state, module)).norm(), mean.norm()
            sums = [sums[0] + off**2, sums[1] + norm**2]
            if norm:
                errors[module] = off / norm
        return {OVERALL: math.sqrt(sums[0] / sums[1]), **errors} if sums[1] else {}


def factors_after(start: Tensors, delta: Tensors, rank: int) -> Tensors:
    """The factors that a node holds after training `rank` ranks; other tensors are left out."""
    factors = {name: tensor for name, tensor in start.items() if rank_axis(name) is not None}
    return added(truncated(factors, rank), delta)


def _pair(tensors: Tensors, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A of a module. A factor that is not exchanged is the same for all: any constant does for it."""
    b, a = (tensors.get(name) for name in factor_names(module))
    if b is not None:
        return b, a if a is not None else torch.eye(b.shape[1])
    assert a is not None
    return torch.eye(a.shape[0]), a

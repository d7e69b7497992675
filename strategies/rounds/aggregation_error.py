"""The aggregation error: how far the result of a combination rule is from the mean that it stands for.

With adapters, nodes learn products B_i A_i, and the ideal is their weighted mean sum_i p_i B_i A_i. Rules that average
factors get something else. Per module and overall, the error is

    || B A - sum_i p_i B_i A_i ||_F / || sum_i p_i B_i A_i ||_F

It is estimated from sketches W^T M X of the products. W and X have `PROBES` columns of random signs, divided by
sqrt(PROBES), so that E ||W^T M X||_F^2 = ||M||_F^2. Sketches are linear: one sum of PROBES x PROBES a module is all
that a round holds, for any number of nodes and any rank, and an error of zero reads as zero. The standard deviation of
an estimated norm is 1 / sqrt(PROBES) of the norm for a matrix of rank one, the worst, and about 1 / sqrt(PROBES r) for
a matrix with r singular values that are alike. Sides of up to PROBES numbers are not sketched: errors are exact there.

Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from strategies.algebra.lowrank import factor_names, merged_pair, modules
from strategies.algebra.philox import words
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Entry

OVERALL = "overall"
PROBES = 64  # the signs of a row are the bits of one word


class ErrorMeasurement:
    """A measurement of one round's aggregation error: it sees what every node trained, then reads the new state."""

    def __init__(self) -> None:
        self._sums: Tensors = {}  # by module: the sketch of the weighted sum of products, float64
        self._weight = 0.0

    def see(self, trained: Tensors, weight: float) -> None:
        """Add what one node had after training, at whatever rank it trains; only factors count."""
        for module in modules(trained):
            product = weight * _sketch(*_pair(trained, module))
            self._sums[module] = self._sums[module].add_(product) if module in self._sums else product
        self._weight += weight

    def read(self, state: Tensors, merged: Sequence[Entry] = ()) -> dict[str, float]:
        """Return the relative errors by module, and `overall`; empty without factors, or if nothing was learned.

        `merged` are the entries that this round has put into the base: they count with the factors.
        """
        errors, sums = {}, [0.0, 0.0]
        for module in sorted(self._sums):  # a resumed run has them in another order, and sums would round otherwise
            mean = self._sums[module] / self._weight
            off, norm = (mean - _made(module, state, merged)).norm().item(), mean.norm().item()
            sums = [sums[0] + off**2, sums[1] + norm**2]
            if norm:
                errors[module] = off / norm
        return {OVERALL: math.sqrt(sums[0] / sums[1]), **errors} if sums[1] else {}


def _made(module: str, state: Tensors, merged: Sequence[Entry]) -> torch.Tensor | float:
    """Return the sketch of what the round has made of a module; 0 if nothing."""
    pairs = [_pair(state, module)] if any(name in state for name in factor_names(module)) else []
    pairs += [pair for entry in merged if (pair := merged_pair(entry.tensors, module))]
    return sum(_sketch(*pair) for pair in pairs)


def _pair(tensors: Tensors, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B and A of a module. A factor that is not exchanged is the same for all nodes, so any constant can replace
    it."""
    b, a = (tensors.get(name) for name in factor_names(module))
    if b is not None:
        return b, a if a is not None else torch.eye(b.shape[1])
    assert a is not None
    return torch.eye(a.shape[0]), a


def _sketch(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return W^T b a X, of at most PROBES x PROBES, float64. Long sides are multiplied in float32."""
    return _shortened(b.T, stream=0).T @ _shortened(a, stream=1)


def _shortened(factor: torch.Tensor, stream: int) -> torch.Tensor:
    """Return a factor (rank x size), with its size reduced to PROBES if it is larger; float64."""
    factor, size = factor.detach().cpu(), factor.shape[1]
    return (factor.float() @ _probes(size, stream) if size > PROBES else factor).double()


@lru_cache(maxsize=16)
def _probes(size: int, stream: int) -> torch.Tensor:
    """Return random signs divided by the root of their number (size x PROBES), float32, the same on every machine."""
    bits = words(0, stream, 0, size)[:, None] >> np.arange(PROBES, dtype=np.uint64) & np.uint64(1)
    return torch.from_numpy((2 * bits.astype(np.float32) - 1) / np.float32(math.sqrt(PROBES)))

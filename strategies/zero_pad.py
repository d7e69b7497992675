"""Zero-padding: factors of smaller rank are filled up with zeros, then averaged.

The baseline of RBLA (Chen et al., arXiv 2408.08699) and of HetLoRA's plain form: with p_i = n_i / n over
the whole cohort, slice k of a factor becomes sum over its owners of p_i x_i[k]. The nodes that lack
the slice count as zeros there, so even without learning it shrinks by c_k = sum over owners of p_i each
round, and the product of both factors by c_k^2. That is the method, and a test asserts it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, difference
from strategies.exchange.contract import EQUAL_RANKS, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.vocabulary import State, Update


@dataclass(frozen=True)
class ZeroPad(Strategy):
    """The mean over everybody of zero-padded factors."""

    tunings = frozenset({"lora"})
    ragged = True
    mean = False
    laws = frozenset({IDENTITY, ORDER, WEIGHTS, EQUAL_RANKS})

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        total = WeightedSum(state.tensors)
        for update in updates:
            total.add(self.trained(state, update), update.weight)
        return difference(total.mean(), state.tensors)

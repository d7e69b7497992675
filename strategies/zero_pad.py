"""Zero-padding: factors of smaller rank are padded with zeros, then averaged.

The baseline of RBLA (Chen et al., arXiv 2408.08699) and HetLoRA's plain form: with p_i = n_i / n over the whole cohort,
slice k of a factor becomes the sum of p_i x_i[k] over the nodes that have it. The others count as zero there, so even
without learning the slice shrinks by c_k, the sum of p_i over the nodes that have it, each round, and the product of
both factors by c_k^2. That is the method, and a test asserts it.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from strategies.algebra.lowrank import owned, rank_axis
from strategies.algebra.mean import WeightedSum
from strategies.algebra.robust import Settle
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import EQUAL_RANKS, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import State, Update


@dataclass(frozen=True)
class ZeroPad(Strategy):
    """The mean over all nodes of zero-padded factors."""

    needs_ranks = True
    heterogeneous_ranks = True
    is_weighted_mean = False
    has_combine_by = True
    laws = frozenset({IDENTITY, ORDER, WEIGHTS, EQUAL_RANKS})

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        changes = WeightedSum(state.tensors)
        weights: dict[int, float] = defaultdict(float)  # by rank
        for update in updates:
            changes.add(update.delta, update.weight)
            weights[update.assignment.rank] += update.weight
        lacking = owned(weights, state.rank) - changes.total
        for name, total in changes.sums.items():
            axis = rank_axis(name)
            if axis is not None:  # nodes that lack a slice count as zero
                total.addcmul_(state.tensors[name].double(), lacking.unsqueeze(1 - axis))
        return changes.mean()

    def combine_by(self, settle: Settle, state: State, updates: Iterable[Update]) -> Tensors:
        """Combine every slice over the nodes that have it by `settle`, scaled by their share of the nodes as in the
        mean."""
        return settle(state.tensors, (update.delta for update in updates)).padded(state.tensors)

"""RBLA: rank-based LoRA aggregation; every slice is averaged over the nodes that have it.

Chen, Tavallaie, Nazemi, Zomaya, "RBLA: Rank-Based-LoRA-Aggregation for Fine-Tuning Heterogeneous Models in FLaaS",
arXiv 2408.08699. With n_i the rows of node i and r_i its rank, slice k of a pair of factors:

    A[k, :] <- sum_{i: r_i > k} n_i A_i[k, :] / sum_{i: r_i > k} n_i          (B[:, k] in the same way)

Other tensors are averaged as in FedAvg. A node is sent the leading r_i slices. Slices that no node of the cohort has
keep their value; the paper does not treat them, and without them a node would get fewer slices than it asked for. The
scaling of the product does not depend on a node's rank: alpha / r_i would mix slices that were trained under different
scales.

Replication padding (Byun and Lee, arXiv 2406.17477), which fills what a node lacks and averages over all nodes, is this
rule if the filler is the owners' mean.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import owned, rank_axis
from strategies.algebra.mean import WeightedSum
from strategies.algebra.robust import Settle
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import State, Update


@dataclass(frozen=True)
class RBLA(Strategy):
    """The mean of each slice over the nodes that have it, undiluted by the others."""

    needs_ranks = True
    heterogeneous_ranks = True
    is_weighted_mean = False
    has_combine_by = True

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        changes = WeightedSum(state.tensors)
        weights: dict[int, float] = defaultdict(float)  # by rank
        for update in updates:
            changes.add(update.delta, update.weight)
            weights[update.assignment.rank] += update.weight
        slices = owned(weights, state.rank)
        change: Tensors = {}
        for name, total in changes.sums.items():
            axis = rank_axis(name)
            owners = torch.tensor(changes.total) if axis is None else slices.unsqueeze(1 - axis)
            change[name] = torch.where(owners > 0, total / owners, 0.0).to(state.tensors[name].dtype)
        return change

    def combine_by(self, settle: Settle, state: State, updates: Iterable[Update]) -> Tensors:
        """Combine every slice over the nodes that have it by `settle`; slices of too few nodes keep their value."""
        return settle(state.tensors, (update.delta for update in updates)).over_owners(state.tensors)

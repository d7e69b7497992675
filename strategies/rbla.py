"""RBLA: rank-based LoRA aggregation; every slice is averaged over the nodes that own it.

Chen, Tavallaie, Nazemi, Zomaya, "RBLA: Rank-Based-LoRA-Aggregation for Fine-Tuning Heterogeneous Models in
FLaaS", arXiv 2408.08699. With n_i the rows of node i and r_i its rank, slice k of a pair of factors:

    A[k, :] <- sum_{i: r_i > k} n_i A_i[k, :] / sum_{i: r_i > k} n_i          (B[:, k] likewise)

Tensors that are no factors are averaged as in FedAvg. A node is sent the leading r_i slices. Slices that
nobody in the cohort owns keep their value; the paper does not treat them, and dropping them would hand
a node fewer slices than it asked for. The scaling of the product does not depend on a node's rank: with
alpha / r_i, slices trained under different scales would be mixed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import rank_axis
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors
from strategies.exchange.contract import Strategy
from strategies.exchange.vocabulary import State, Update


@dataclass(frozen=True)
class RBLA(Strategy):
    """The mean of each slice over its owners, undiluted by nodes that lack it."""

    tunings = frozenset({"lora"})
    ragged = True
    mean = False

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        changes = WeightedSum(state.tensors)
        owners = WeightedSum(_slices(state.tensors))
        for update in updates:
            changes.add(update.delta, update.weight)
            owners.add(_slices(update.delta), update.weight)
        return {
            name: torch.where(owned > 0, changes.sums[name] / owned, 0.0).to(state.tensors[name].dtype)
            for name, owned in owners.sums.items()
        }


def _slices(tensors: Tensors) -> Tensors:
    """A one for every rank slice of a tensor, in its place: r x 1 for A, 1 x r for B, a single one for others."""
    return {
        name: tensor.new_ones([n if axis == rank_axis(name) else 1 for axis, n in enumerate(tensor.shape)])
        for name, tensor in tensors.items()
    }

"""RBLA with shrunk owners: a slice moves as far as its owners speak for everybody.

Ours. RBLA (arXiv 2408.08699) moves slice k of a pair of factors by the mean of its owners, zero-padding divides by the
rows of all nodes. Which is nearer to what all nodes together would have learned shows in the slices that all of them
have. With n_i the rows of node i, r_i its rank, D_i its update, and D_i' the part of it in these slices:

    u_k = sum_{i: r_i > k} n_i D_i[k] / sum_{i: r_i > k} n_i            the owners' mean
    c_k = sum_{i: r_i > k} n_i / sum_i n_i                              the owners' share of the rows
    m = mean of D_i' over all nodes,   m_k = mean of D_i' over the owners of slice k, both by rows
    s_k = <m, m_k> / <m_k, m_k>, cut to c_k <= s_k <= 1                 least squares: m ~ s_k m_k
    slice k  <-  slice k + s_k u_k                                      (A and B alike)

If owners and others learn the same, s_k = 1 and this is RBLA; if what the others learn is orthogonal, s_k = c_k, and
each of them counts as a node that has learned nothing. Unlike with zero-padding a slice never fades by itself. Other
tensors are averaged as in FedAvg. Slices that no node of the cohort has keep their value. One sum is kept for every
distinct rank.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import owned, rank_axis
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import State, Update


@dataclass(frozen=True)
class RBLAShrunk(Strategy):
    """The mean of each slice over its owners, times how well they speak for all nodes."""

    needs_ranks = True
    heterogeneous_ranks = True
    is_weighted_mean = False

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        by_rank: dict[int, WeightedSum] = {}
        for update in updates:
            rank = update.assignment.rank
            by_rank.setdefault(rank, WeightedSum(state.tensors)).add(update.delta, update.weight)
        weights = {rank: changes.total for rank, changes in by_rank.items()}
        slices, shares = owned(weights, state.rank), _shares(by_rank, state.rank)
        change: Tensors = {}
        for name, tensor in state.tensors.items():
            total, axis = _sum(changes.sums[name] for changes in by_rank.values()), rank_axis(name)
            if axis is None:
                mean = total / sum(weights.values())
            else:
                owners = slices.unsqueeze(1 - axis)
                mean = torch.where(owners > 0, shares.unsqueeze(1 - axis) * total / owners, 0.0)
            change[name] = mean.to(tensor.dtype)
        return change


def _shares(by_rank: Mapping[int, WeightedSum], rank: int) -> torch.Tensor:
    """Return s_k of every slice (rank,), float64; 0 for slices that nobody has."""
    common = {own: _common(changes, min(by_rank)) for own, changes in by_rank.items()}
    rows = sum(changes.total for changes in by_rank.values())
    mean, shares = _sum(common.values()) / rows, torch.zeros(rank, dtype=torch.float64)
    for k in range(min(rank, max(by_rank))):
        owners = [own for own in by_rank if own > k]
        weight = sum(by_rank[own].total for own in owners)
        theirs = _sum(common[own] for own in owners) / weight
        square = theirs @ theirs
        fitted = mean @ theirs / square if len(owners) < len(by_rank) and square > 0 else weight / rows
        shares[k] = min(1.0, max(weight / rows, float(fitted)))
    return shares


def _common(changes: WeightedSum, least: int) -> torch.Tensor:
    """Return the leading `least` slices of all factors in a sum, as one vector."""
    axes = ((tensor, rank_axis(name)) for name, tensor in changes.sums.items())
    parts = [tensor.narrow(axis, 0, least).flatten() for tensor, axis in axes if axis is not None]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])  # none while the head alone trains


def _sum(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(tensors)).sum(dim=0)

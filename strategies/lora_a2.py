"""LoRA-A²: one factor at a time, and of it the rank units that matter most to a node.

Koo, Jang, Ok, "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients", arXiv 2410.22815
(ACL 2025). Odd rounds train B, even rounds A, as in RoLoRA. After training a node scores unit k of every module by the
Frobenius norm of what it would change in the product,

    s_k = ||dB[:, k]|| ||A[k, :]||   while B trains,   s_k = ||B[:, k]|| ||dA[k, :]||   while A trains,

keeps the `units` x modules units with the highest scores, over all modules together, and answers with zero for the
others. The server takes the mean. The resting factor is the same for all nodes, so the rule is exact. With `units` of
at least the rank it is RoLoRA. The head trains in every round and is sent whole.

The paper counts what is not zero. Here an answer keeps its shape, so the zeros travel too: it is as large as
RoLoRA's. To save the bytes put the wrapper `top-k` around it; with `top-k.fraction` of at least the share of numbers
that are not zero it loses nothing. A node that trains is sent both factors.

Different here: all nodes have the same number of units, one learning rate serves both factors, and scores are
taken after a full training (when the authors take them is not known to us).
"""

from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import factor_names, modules, pair, rank_axis
from strategies.algebra.tensors import Tensors, added, snapshot
from strategies.exchange.strategy import EQUAL_RANKS, EXACT, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Metrics
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer


@dataclass(frozen=True)
class LoraA2(Strategy):
    """FedAvg of one factor at a time, of which a node moves its best units."""

    units: int = option(2, low=1, doc="rank units a module that a node sends, on average; the rank or more: all")

    needs_ranks = True
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS, EXACT})

    def trains(self, name: str, round: int) -> bool:
        resting = 0 if round % 2 else 1
        return rank_axis(name) != resting

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        before = snapshot(self.exchanged(model))
        delta, metrics = super().train(model, trainer, assignment)
        kept = best_units(before, delta, self.units)
        model.write({name: tensor for name, tensor in added(before, kept).items() if name in kept})
        return kept, metrics


def best_units(before: Tensors, delta: Tensors, units: int) -> Tensors:
    """Return an update of one factor with zeros outside the `units` x modules units that change products most.

    `before` has both factors of every module (B outputs x rank, A rank x inputs), `delta` has one of them and may have
    tensors that are no factors, which stay. Among equal scores the first module's lowest unit wins.
    """
    found = modules(delta)
    scores = torch.cat([_scores(before, delta, module) for module in found])
    order = torch.sort(scores, descending=True, stable=True).indices
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[order[: units * len(found)]] = True
    kept = dict(delta)
    for module, own in zip(found, torch.split(chosen, [len(pair(before, m)[1]) for m in found]), strict=True):
        for name in factor_names(module):
            if name in delta:
                mask = own if rank_axis(name) == 1 else own[:, None]
                kept[name] = torch.where(mask, delta[name], 0.0).to(delta[name].dtype)
    return kept


def _scores(before: Tensors, delta: Tensors, module: str) -> torch.Tensor:
    """Return the norm of every unit's change of the product, (rank,), float64."""
    b, a = ((delta if name in delta else before)[name].double() for name in factor_names(module))
    scores: torch.Tensor = torch.linalg.vector_norm(b, dim=0) * torch.linalg.vector_norm(a, dim=1)
    return scores

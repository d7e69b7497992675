"""HetLoRA: nodes prune ranks that they do not use; products of larger norm weigh more.

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", arXiv
2401.06432 (EMNLP 2024).

Node i of rank r adds lambda ||B[:, k:]|| ||A[k:, :]|| to its loss, with k = floor(gamma r). If that tail is smaller
after training than before, it answers with its first k ranks and keeps this rank. The server pads with zeros and
averages with weights p_i = s_i / sum_j s_j, s_i = ||B_i A_i||_F; rows do not count. Other tensors are averaged by rows
as in FedAvg.

The paper has one adapter. For several layers, s_i is computed per layer here, the tails of all layers are added up, and
a node has one rank for all of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import ProductSum, factor_names, modules, non_lora, pair, truncated
from strategies.algebra.mean import WeightedSum
from strategies.algebra.robust import Settle
from strategies.algebra.tensors import Tensors, difference, snapshot
from strategies.exchange.strategy import IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Metrics, State, Update
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer


@dataclass(frozen=True)
class HetLora(Strategy):
    """HetLoRA: `gamma` is the share of ranks that stay when a node prunes, `penalty` is lambda."""

    gamma: float = option(0.99, low=0.01, high=1.0, doc="share of its ranks that a node keeps when it prunes")
    penalty: float = option(1e-3, low=0.0, doc="weight of the norms of the ranks that would go")

    needs_ranks = True
    heterogeneous_ranks = True
    prunes = True
    is_weighted_mean = False
    has_combine_by = True
    laws = frozenset({IDENTITY, ORDER, WEIGHTS})

    # ------------------------------------------------------------------ the server's half

    def lengths(self, state: State, update: Update) -> dict[str, float]:
        trained = self.trained(state, update)
        products = [ProductSum.of(*pair(trained, module)).norm() for module in modules(trained)]
        return super().lengths(state, update) | {"norm of products": math.hypot(*products)}  # the weights of the mean

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        rest = WeightedSum(non_lora(state.tensors))
        factors = {
            module: WeightedSum({name: state.tensors[name] for name in factor_names(module)})
            for module in modules(state.tensors)
        }
        for update in updates:
            trained = self.trained(state, update)
            rest.add({name: trained[name] for name in rest.sums}, update.weight)
            for module, total in factors.items():
                length = ProductSum.of(*pair(trained, module)).norm()
                total.add({name: trained[name] for name in factor_names(module)}, length)
        mean = rest.mean()
        for total in factors.values():
            mean |= total.mean() if total.total else {name: state.tensors[name] for name in total.sums}
        return difference(mean, state.tensors)

    def combine_by(self, settle: Settle, state: State, updates: Iterable[Update]) -> Tensors:
        """Combine every slice over the nodes that have it by `settle`, scaled by their share; norms of products do not
        weigh, because a dishonest node's would be the largest."""
        return settle(state.tensors, (update.delta for update in updates)).padded(state.tensors)

    # ------------------------------------------------------------------ the node's half

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        live = self.live(model, assignment)
        before = snapshot(live)
        kept = max(1, int(self.gamma * assignment.rank))
        tail_before = float(_tails(live, kept).detach())
        metrics: Metrics = dict(trainer.fit(model, live, penalty=lambda: self.penalty * _tails(live, kept)))
        rank = kept if float(_tails(live, kept).detach()) < tail_before else assignment.rank
        return truncated(difference(live, before), rank), metrics | {"rank": rank}


def _tails(live: dict[str, torch.Tensor], kept: int) -> torch.Tensor:
    """Return the sum over all modules of ||B[:, kept:]|| ||A[kept:, :]||; a zero with gradients if there is nothing
    beyond `kept`."""
    total = torch.zeros(())
    for module in modules(live):
        b, a = pair(live, module)
        if kept < a.shape[0]:
            total = total.to(a.device) + torch.linalg.matrix_norm(b[:, kept:]) * torch.linalg.matrix_norm(a[kept:])
    return total

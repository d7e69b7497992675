"""FLoRA: the adapters of all nodes are stacked, and the stack is merged into the base.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", arXiv
2409.05976 (NeurIPS 2024): with B = [B_1 .. B_N] and A = [p_1 A_1; ..; p_N A_N], B A = sum_i p_i B_i A_i, whatever the
ranks. Every node is sent the stack, adds scaling * B A to the base and begins the next round with a new adapter.

With `energy` tau < 1 it is FLoRIST (Ramesh and Dass, arXiv 2506.09199, MLSys 2026): only the first p singular values of
the mean product travel, with p the least for which sum_{k <= p} sigma_k^2 >= tau sum_k sigma_k^2. A node downloads p (m
+ n) numbers for a layer of m x n. What is cut off is lost: at most a share 1 - tau of the mean's squared length, so the
rule is no longer exact. tau = 1 is FLoRA.

The stack is an entry of the journal: a node is sent it once and keeps it. It is as large as the adapters of the whole
cohort together, or is sent as one matrix if that is smaller. A node sends B_i and A_i whole: a new B is zero, so a node
that learns nothing sends a product of zero. Every node draws A for itself. Other tensors are averaged as in FedAvg.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from strategies.algebra.lowrank import ProductSum, modules, non_lora, pair, rank_axis, truncated, zero_ranks_above
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, added, difference, snapshot
from strategies.exchange.replay import merge_products
from strategies.exchange.strategy import EXACT, FIXED_POINT, ORDER, PRODUCTS, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Entry, Metrics, State, Update
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer

COLUMNS = 16  # of a product that are compared


@dataclass(frozen=True)
class Flora(Strategy):
    """The exact mean of products of any ranks, added to the base."""

    energy: float = option(1.0, low=0.01, high=1.0, doc="share of each mean product that is kept; 1: all of it (FLoRA)")

    needs_ranks = True
    heterogeneous_ranks = True
    writes_base = True
    is_weighted_mean = False
    additive_across_rounds = False  # an update is the node's factors, which are drawn anew in every round
    laws = frozenset({FIXED_POINT, ORDER, WEIGHTS, EXACT})

    @property
    def fixed_step(self) -> str:
        return "it combines a stack of adapters, which is added to the base as a whole"

    def apart(self, config: TaskConfig) -> str:
        return PRODUCTS

    # ------------------------------------------------------------------ the server's half

    def begin(self, state: State, round: int, rank: int) -> State:
        """Add adapters that were passed in to the base; a round's own already are."""
        merged: Tensors = {}
        for module in modules(state.tensors):
            b, a = pair(state.tensors, module)
            if b.any():
                merged |= ProductSum.of(b, a).parts(module)
        if not merged:
            return state
        journal = (*state.journal, Entry(round - 1, 0, merged))
        return replace(state, tensors=zero_ranks_above(state.tensors, 0), journal=journal)

    def start_of(self, state: State, assignment: Assignment) -> State:
        return State(non_lora(state.tensors), state.journal)  # the factors in the state only give the shapes

    def expected(self, state: State, assignment: Assignment) -> Tensors:
        return truncated(state.tensors, assignment.rank)

    def length(self, delta: Tensors) -> float:
        """Return the lengths of the products, which are what nodes learned, and of all other tensors: factors alone are
        long from the start."""
        learned = [ProductSum.of(*pair(delta, module)).norm() for module in modules(delta)]
        return math.hypot(super().length(non_lora(delta)), *learned)

    def shortened(self, delta: Tensors, share: float) -> Tensors:
        """Scale B and the other tensors: the products shrink in proportion."""
        longer = {name: tensor for name, tensor in delta.items() if rank_axis(name) != 0}
        return delta | super().shortened(longer, share)

    def comparable(self, state: State, update: Update) -> Tensors:
        """Return some columns of the products, because every node draws its own factors."""
        pairs = {module: pair(update.delta, module) for module in modules(update.delta)}
        return non_lora(update.delta) | {f"{module} product": b @ a[:, :COLUMNS] for module, (b, a) in pairs.items()}

    def trained(self, state: State, update: Update) -> Tensors:
        return update.delta | added(non_lora(state.tensors), update.delta)

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        stacks: dict[str, ProductSum] = defaultdict(ProductSum)
        rest = WeightedSum(non_lora(state.tensors))
        for update in updates:
            rest.add(non_lora(update.delta), update.weight)
            for module in modules(update.delta):
                stacks[module].add(update.weight, *pair(update.delta, module))
        combined = rest.mean()
        for module, stack in stacks.items():
            combined |= stack.parts(module, 1 / rest.total, energy=self.energy)
        return combined

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        rest = non_lora(state.tensors)
        merged = {name: tensor for name, tensor in combined.items() if name not in rest}
        entries = (Entry(round, 0, merged),) if merged else ()
        return replace(state, tensors=state.tensors | added(rest, combined), journal=state.journal + entries)

    # ------------------------------------------------------------------ the node's half

    def replay(self, model: TunedModel, entry: Entry) -> None:
        merge_products(model, entry)

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        model.write(_drawn(truncated(model.trained, assignment.rank), assignment.seed))
        before = snapshot(non_lora(model.trained))
        metrics = trainer.fit(model)
        factors = {name: tensor for name, tensor in model.trained.items() if name not in before}
        return snapshot(factors) | difference(model.trained, before), metrics


def _drawn(tensors: Tensors, seed: int) -> Tensors:
    """Return newly drawn factors of the same shapes: A as peft draws it (uniform, Kaiming's bound for a = sqrt 5), B
    zero."""
    source = torch.Generator().manual_seed(seed)
    factors: Tensors = {}
    for name, tensor in tensors.items():
        if rank_axis(name) == 0:
            bound = 1 / math.sqrt(tensor.shape[1])
            factors[name] = torch.empty(tensor.shape).uniform_(-bound, bound, generator=source)
        elif rank_axis(name) == 1:
            factors[name] = torch.zeros(tensor.shape)
    return factors

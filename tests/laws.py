"""Cohorts drawn at random, and for every law how far a strategy is from keeping it.

A plan is small numbers; `scene` lets a strategy make everything from it by the steps of the round loop:
initial state, tickets, starts, and updates of the shapes it expects.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import strategies
from strategies.algebra.tensors import Tensors, added
from strategies.exchange.contract import EQUAL_RANKS, EXACT, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.vocabulary import Profile, State, Update
from task.base import Base
from task.config import TaskConfig
from task.model import TunedModel
from task.rows import Pixels, Rows
from task.train import Trainer

FACTORS = ("m0.lora_B.weight", "m0.lora_A.weight")
INPUTS, OUTPUTS, LABELS = 4, 5, 3  # of the toy's adapted layer and of its head


@dataclass(frozen=True)
class Plan:
    """A federation in numbers."""

    budgets: tuple[int, ...]  # rank of every node
    cohort: tuple[int, ...]  # nodes that answer, in this order
    weights: tuple[int, ...]  # rows of every node
    seed: int  # of all values


@dataclass(frozen=True)
class Scene:
    """A state and the updates that answer it."""

    strategy: Strategy
    state: State
    updates: list[Update]

    def next(self, updates: Sequence[Update] | None = None) -> State:
        """The state after the round."""
        combined = self.strategy.combine(self.state, iter(self.updates if updates is None else updates))
        return self.strategy.apply(self.state, combined, 1)


class Toy(nn.Module):
    """An adapted linear layer over frozen weights, and a head. Factors are named as on the wire."""

    def __init__(self, rank: int, seed: int) -> None:
        super().__init__()
        self.base = nn.Linear(INPUTS, OUTPUTS).requires_grad_(False)
        self.m0 = nn.ModuleDict(
            {"lora_A": nn.Linear(INPUTS, rank, bias=False), "lora_B": nn.Linear(rank, OUTPUTS, bias=False)}
        )
        self.classifier = nn.Linear(OUTPUTS, LABELS, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        inputs = pixel_values.flatten(1)
        logits = self.classifier(torch.tanh(self.base(inputs) + self.m0["lora_B"](self.m0["lora_A"](inputs))))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def toy_model(strategy: Strategy, rank: int, seed: int, config: TaskConfig | None = None) -> TunedModel:
    """The toy as a strategy is given it; without adapters where the strategy is not meant for them."""
    lora = strategy.tunings is None or "lora" in strategy.tunings
    module = Toy(rank, seed)
    for factor in module.m0.values():
        factor.requires_grad_(lora)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    config = config or TaskConfig(tuning="lora" if lora else "full")
    fresh = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return TunedModel(module, Base("toy", Path("toy"), "toy"), config, rank if lora else 0, dict(trained), fresh)


def trainer(**settings: object) -> Trainer:
    """Ten random images of 2 x 2 pixels."""
    numbers = np.random.default_rng(5)
    pixels = Pixels(numbers.integers(0, 256, (10, 1, 2, INPUTS // 2), dtype=np.uint8), 1 / 255, (0.5,), (0.5,))
    names = tuple("abc"[:LABELS])
    rows = Rows(pixels, numbers.integers(0, LABELS, 10), names)
    return Trainer(TaskConfig(**({"batch_size": 4} | settings)), rows, seed=11)  # type: ignore[arg-type]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """1 to 6 nodes of ranks 1 to 6, of which some answer, in any order."""
    budgets = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    nodes = draw(st.permutations(range(len(budgets))))
    cohort = nodes[: draw(st.integers(1, len(nodes)))]
    weights = draw(st.lists(st.integers(1, 100), min_size=len(budgets), max_size=len(budgets)))
    return Plan(tuple(budgets), tuple(cohort), tuple(weights), draw(st.integers(0, 2**20)))


def scene(strategy: Strategy, plan: Plan) -> Scene:
    """What the plan comes to under a strategy."""
    budgets = plan.budgets if strategy.ragged else (min(plan.budgets),) * len(plan.budgets)
    profiles = [Profile(1000 + i, str(i), rank, plan.weights[i], "store") for i, rank in enumerate(budgets)]
    tickets = strategy.assign(profiles, 1, 3, plan.seed)
    state = strategy.initial(toy_model(strategy, max(ticket.rank for ticket in tickets.values()), plan.seed))
    generator = torch.Generator().manual_seed(plan.seed + 1)
    updates = []
    for node in plan.cohort:
        ticket = tickets[str(node)]
        like = strategy.expected(strategy.start_of(state, ticket), ticket)
        delta = {n: (torch.randn(t.shape, generator=generator) / 4).to(t.dtype) for n, t in like.items()}
        updates.append(Update(str(node), ticket, delta, float(plan.weights[node])))
    return Scene(strategy, state, updates)


def distance(one: State, other: State) -> float:
    """Largest difference between two states, journals included; infinite where names or shapes differ."""
    if len(one.journal) != len(other.journal):
        return float("inf")
    sections = [(one.tensors, other.tensors)]
    sections += [(a.tensors, b.tensors) for a, b in zip(one.journal, other.journal, strict=True)]
    gaps = [torch.zeros(1, dtype=torch.float64)]
    for a, b in sections:
        if {n: t.shape for n, t in a.items()} != {n: t.shape for n, t in b.items()}:
            return float("inf")
        gaps += [(a[name].double() - b[name].double()).abs().flatten() for name in a]
    return float(torch.cat(gaps).max())  # NaN where there is one


def from_identity(strategy: Strategy, plan: Plan) -> float:
    """One node, which holds all ranks: the state against what the node trained."""
    drawn = scene(strategy, plan)
    lone = [update for update in drawn.updates if update.ticket.rank == drawn.state.rank][:1]
    if not lone:
        return 0.0
    return distance(drawn.next(lone), State(added(drawn.state.tensors, lone[0].delta), drawn.state.journal))


def from_fixed_point(strategy: Strategy, plan: Plan) -> float:
    """Updates of zero: the state against itself."""
    drawn = scene(strategy, plan)
    nothing = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]
    return distance(drawn.next(nothing), drawn.state)


def from_order(strategy: Strategy, plan: Plan) -> float:
    """The updates against the same ones from last to first."""
    drawn = scene(strategy, plan)
    return distance(drawn.next(), drawn.next(drawn.updates[::-1]))


def from_weights(strategy: Strategy, plan: Plan) -> float:
    """The updates against the same ones with seven times the rows."""
    drawn = scene(strategy, plan)
    return distance(drawn.next(), drawn.next([replace(u, weight=7 * u.weight) for u in drawn.updates]))


def from_fedavg(strategy: Strategy, plan: Plan) -> float:
    """All budgets the same: the strategy against federated averaging of the same updates."""
    drawn = scene(strategy, replace(plan, budgets=(plan.budgets[0],) * len(plan.budgets)))
    return distance(drawn.next(), replace(drawn, strategy=strategies.load("fedavg")).next())


def from_mean_product(strategy: Strategy, plan: Plan) -> float:
    """B A of the next state against the weighted mean of the nodes' products, as matrices in float64.

    A factor that does not travel is the toy's, the same for all.
    """
    drawn = scene(strategy, plan)
    own = toy_model(strategy, max(plan.budgets), plan.seed).fresh
    if FACTORS[0] not in own:
        return 0.0

    def product(tensors: Tensors) -> torch.Tensor:
        rank = min(t.shape[0 if name == FACTORS[1] else 1] for name, t in tensors.items() if name in FACTORS)
        b, a = (tensors.get(name, own[name]).double() for name in FACTORS)
        return b[:, :rank] @ a[:rank]

    total = sum(update.weight for update in drawn.updates)
    mean = torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
    for update in drawn.updates:
        start = strategy.start_of(drawn.state, update.ticket).tensors
        mean += update.weight / total * product(added(start, update.delta))
    return float((product(drawn.next().tensors) - mean).abs().max())


LAWS: dict[str, Callable[[Strategy, Plan], float]] = {
    IDENTITY: from_identity,
    FIXED_POINT: from_fixed_point,
    ORDER: from_order,
    WEIGHTS: from_weights,
    EQUAL_RANKS: from_fedavg,
    EXACT: from_mean_product,
}

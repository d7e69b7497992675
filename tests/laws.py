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
from strategies.algebra.lowrank import products
from strategies.algebra.projection import LARGEST
from strategies.algebra.tensors import Tensors, added
from strategies.exchange import compatibility
from strategies.exchange.strategy import EQUAL_RANKS, EXACT, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Entry, Profile, State, Update
from strategies.exchange.wrapper import Wrapper
from strategies.ferret import COUNTS, NUMBERS, ROW, SCALES, SEEDS
from task.config import TaskConfig
from task.data.rows import Pixels, Rows
from task.models.base import Base
from task.models.model import TunedModel
from task.training.trainer import Trainer

FACTORS = ("m0.lora_B.weight", "m0.lora_A.weight")
WEIGHT = "m0.weight"  # what they are added to
INPUTS, OUTPUTS, LABELS = 4, 5, 3  # of the toy's adapted layer and of its head
SAID = {"steps": 2, "kept-round": 0}  # metrics that strategies may need
SMALL: dict[str, dict[str, object]] = {  # options that fit a model as small as the toy
    "ferret": {"coordinates": 8, "block": 256},
    "fedkseed": {"directions": 8, "block": 256},
}
FURTHER: dict[str, list[dict[str, object]]] = {  # options of further variants
    "sa-fedlora": [{"initiating_rounds": 0}],
    "slora": [{"sparse_rounds": 0}],
    "ferret": [{"seeds": "shared"}, {"seeds": "pool"}],
    "fedkseed": [{"pro": True}],
}


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
        combined = compatibility.combination(self.strategy)(
            self.state, iter(self.updates if updates is None else updates)
        )
        return self.strategy.apply(self.state, combined, 1)


class Adapted(nn.Linear):
    """A frozen linear layer with the factors of an adapter."""

    def __init__(self, rank: int) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self.requires_grad_(False)
        self.lora_A = nn.Linear(INPUTS, rank, bias=False)
        self.lora_B = nn.Linear(rank, OUTPUTS, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = super().forward(inputs) + self.lora_B(self.lora_A(inputs))
        return adapted


class Toy(nn.Module):
    """An adapted layer and a head, all tensors named as on the wire."""

    def __init__(self, rank: int, seed: int) -> None:
        super().__init__()
        self.m0 = Adapted(rank)
        self.classifier = nn.Linear(OUTPUTS, LABELS, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.classifier(torch.tanh(self.m0(pixel_values.flatten(1))))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def toy_model(strategy: Strategy, rank: int, seed: int, config: TaskConfig | None = None) -> TunedModel:
    """The toy as a strategy is given it; without adapters where the strategy is not meant for them."""
    module = Toy(rank, seed)
    for factor in (module.m0.lora_A, module.m0.lora_B):
        factor.requires_grad_(not strategy.needs_in_place)
    named = dict(module.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    frozen = {name: p for name, p in named.items() if name not in trained}
    return TunedModel(
        module,
        Base("toy", Path("toy"), "toy"),
        config or TaskConfig.read({"tuning": "full" if strategy.needs_in_place else "lora"}),
        0 if strategy.needs_in_place else rank,
        trained=trained,
        frozen=frozen,
        initial_values={name: parameter.detach().clone() for name, parameter in trained.items()},
    )


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
    budgets = plan.budgets if strategy.heterogeneous_ranks else (min(plan.budgets),) * len(plan.budgets)
    profiles = [Profile(1000 + i, str(i), rank, plan.weights[i], "store") for i, rank in enumerate(budgets)]
    state = _unsent_zeroed(strategy, strategy.initial(toy_model(strategy, max(budgets), plan.seed)))
    assignments = strategy.assign(profiles, 1, 3, plan.seed)
    assignments = {
        name: replace(assignment, rank=min(assignment.rank, state.rank)) for name, assignment in assignments.items()
    }
    state = strategy.begin(state, 1, max(assignment.rank for assignment in assignments.values()))
    generator = torch.Generator().manual_seed(plan.seed + 1)
    updates = []
    for node in plan.cohort:
        assignment = assignments[str(node)]
        delta = drawn_like(strategy.expected(state, assignment), generator)
        updates.append(Update(str(node), assignment, delta, float(plan.weights[node]), SAID))
    return Scene(strategy, state, updates)


def drawn_like(expected: Tensors, generator: torch.Generator) -> Tensors:
    """A plausible update: small numbers, or coordinates that blocks share as they are expected to."""
    if not expected.keys() >= set(ROW):
        return {n: (torch.randn(t.shape, generator=generator) / 4).to(t.dtype) for n, t in expected.items()}
    numbers = torch.randint(-LARGEST, LARGEST + 1, expected[NUMBERS].shape, generator=generator, dtype=torch.int16)
    scales = torch.rand(expected[SCALES].shape, generator=generator) / LARGEST
    return {NUMBERS: numbers, COUNTS: expected[COUNTS], SCALES: scales}


def _unsent_zeroed(strategy: Strategy, state: State) -> State:
    """Where nodes draw both factors afresh, those in the state have a product of zero, as a fresh adapter has."""
    b, a = FACTORS
    start = strategy.start_of(state, Assignment(1, 3, 0, state.rank)).tensors
    unsent = {b, a} <= state.tensors.keys() and not {b, a} & start.keys()
    return replace(state, tensors=state.tensors | {b: torch.zeros_like(state.tensors[b])}) if unsent else state


def loaded(name: str, wrappers: Sequence[Wrapper] = ()) -> Strategy:
    """A strategy with options that fit the toy."""
    return strategies.load(name, wrappers, **SMALL.get(name, {}))


def variants(name: str, wrappers: Sequence[Wrapper] = ()) -> list[Strategy]:
    """A strategy as it is by default, or fits the toy; one of two stages in the second too, and so on."""
    return [strategies.load(name, wrappers, **SMALL.get(name, {}), **chosen) for chosen in ({}, *FURTHER.get(name, []))]


def merged(journal: Sequence[Entry]) -> Tensors:
    """What entries add to the base altogether, in float64, by the weight that they are added to.

    Factors of an entry may be turned or change sign; what they add may not. Coordinates are replayed onto zeros.
    """
    totals: Tensors = {}
    for entry in journal:
        added_by = replayed(entry).items() if SEEDS in entry.tensors else products(entry.tensors)
        for name, product in added_by:
            totals[name] = totals[name] + product if name in totals else product
    return totals


def replayed(entry: Entry) -> Tensors:
    """What an entry of coordinates adds to the toy."""
    ferret = loaded("ferret")
    toy = toy_model(ferret, 1, 0)
    toy.initial_values = {name: torch.zeros_like(tensor) for name, tensor in toy.initial_values.items()}
    ferret.replay(toy, entry)
    return {name: tensor.double() for name, tensor in toy.initial_values.items()}


def distance(one: State, other: State) -> float:
    """Largest difference between two states and what their journals add; infinite where names or shapes differ."""
    if {n: t.shape for n, t in one.tensors.items()} != {n: t.shape for n, t in other.tensors.items()}:
        return float("inf")
    gaps = [(t.double() - other.tensors[name].double()).abs() for name, t in one.tensors.items()]
    mine, theirs = merged(one.journal), merged(other.journal)
    gaps += [(mine.get(n, 0.0) - theirs.get(n, torch.zeros(()))).abs() for n in mine.keys() | theirs.keys()]
    return float(torch.cat([torch.zeros(1), *(gap.flatten() for gap in gaps)]).max())  # NaN where there is one


def from_identity(strategy: Strategy, plan: Plan) -> float:
    """One node, which holds all ranks: the state against what the node trained."""
    drawn = scene(strategy, plan)
    shapes = {name: tensor.shape for name, tensor in drawn.state.tensors.items()}
    lone = [u for u in drawn.updates if all(delta.shape == shapes.get(n) for n, delta in u.delta.items())][:1]
    if not lone:
        return 0.0
    return distance(drawn.next(lone), State(added(drawn.state.tensors, lone[0].delta), drawn.state.journal))


def from_fixed_point(strategy: Strategy, plan: Plan) -> float:
    """Updates of zero: the state against itself."""
    drawn = scene(strategy, plan)
    return distance(drawn.next([replace(u, delta=nothing_of(u.delta)) for u in drawn.updates]), drawn.state)


def nothing_of(delta: Tensors) -> Tensors:
    """An update of zero; coordinates are zero, how blocks share them stays."""
    return {name: tensor if name == COUNTS else torch.zeros_like(tensor) for name, tensor in delta.items()}


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
    if drawn.updates[0].delta.keys() - drawn.state.tensors.keys():
        return float("inf")  # what nodes learn is no change of what the server holds
    return distance(drawn.next(), replace(drawn, strategy=strategies.load("fedavg")).next())


def product_of(strategy: Strategy, tensors: Tensors, seed: int) -> torch.Tensor:
    """B A in float64. One factor may be missing: it is the toy's. Both: the adapter is fresh, its product zero."""
    ranks = [t.shape[0 if name == FACTORS[1] else 1] for name, t in tensors.items() if name in FACTORS]
    if not ranks:
        return torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
    own = toy_model(strategy, min(ranks), seed).initial_values
    b, a = (tensors.get(name, own[name]).double() for name in FACTORS)
    return b @ a


def products_of(drawn: Scene, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """What the round makes of the nodes' products, entries that it puts into the base included, and their mean.

    A factor that does not travel is the same for all, but under a personal strategy each node's own.
    """
    strategy, mean = drawn.strategy, torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
    for update in drawn.updates:
        own = plan.seed + 1 + int(update.node) if strategy.personalized else plan.seed
        mean += update.weight * product_of(strategy, strategy.trained(drawn.state, update), own)
    after = drawn.next()
    start = strategy.start_of(after, Assignment(1, 3, 0, after.rank)).tensors
    made = product_of(strategy, start, plan.seed)
    made = made + merged(after.journal[len(drawn.state.journal) :]).get(WEIGHT, 0.0)
    return made, mean / sum(update.weight for update in drawn.updates)


def from_mean_product(strategy: Strategy, plan: Plan) -> float:
    """The product that comes of a round against the weighted mean of the nodes' products, as matrices in float64."""
    made, mean = products_of(scene(strategy, plan), plan)
    return float((made - mean).abs().max())


LAWS: dict[str, Callable[[Strategy, Plan], float]] = {
    IDENTITY: from_identity,
    FIXED_POINT: from_fixed_point,
    ORDER: from_order,
    WEIGHTS: from_weights,
    EQUAL_RANKS: from_fedavg,
    EXACT: from_mean_product,
}

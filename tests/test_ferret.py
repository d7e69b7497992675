"""Ferret's round against float64 loops of its equations, and what the server refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bases import Matrix, dense
from laws import Plan, Scene, nothing_of, scene, toy_model

import strategies
from server_app.config import RunConfig
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import Coordinates
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment, Entry, Profile, RunFailed, State, Update
from strategies.ferret import COUNTS, EXACT, LENGTHS, NUMBERS, ROW, SCALES, SEEDS, VELOCITY, Ferret
from task.models.model import TunedModel
from task.schema import ConfigError
from task.seeds import derive

PLAN = Plan((1, 1, 1), (2, 0, 1), (3, 1, 6), 8)


def ferret(**options: object) -> Ferret:
    chosen = strategies.load("ferret", **({"coordinates": 8, "block": 256} | options))
    assert isinstance(chosen, Ferret)
    return chosen


def toy(strategy: Ferret) -> TunedModel:
    return toy_model(strategy, 1, seed=2)


def vector(tensors: Tensors) -> Matrix:
    return np.concatenate([tensors[name].detach().double().numpy().reshape(-1) for name in sorted(tensors)])


def row(delta: Tensors) -> Coordinates:
    return Coordinates(*(delta[name] for name in ROW))


def seeds_of(strategy: Ferret, assignment: Assignment) -> Seeds:
    own = assignment.basis if strategy.seeds == "shared" else derive(assignment.seed, "basis")
    return Seeds(assignment.basis, own)


def mean(drawn: Scene) -> Matrix:
    """eta sum_i p_i V_i gamma_i."""
    strategy = drawn.strategy
    assert isinstance(strategy, Ferret)
    projection = strategy._projection(toy(strategy).trained)
    rows = sum(update.weight for update in drawn.updates)
    parts = [
        update.weight / rows * dense(projection, row(update.delta), seeds_of(strategy, update.assignment))
        for update in drawn.updates
    ]
    return strategy.stepped(drawn.updates[0].assignment) * np.sum(parts, axis=0)


def moved(strategy: Ferret, entries: tuple[Entry, ...]) -> list[Matrix]:
    """What a model stands on after each entry."""
    model, places = toy(strategy), []
    for entry in entries:
        strategy.replay(model, entry)
        places.append(vector({name: model.base_weight(name) for name in model.trained}))
    return places


def near(one: Matrix, other: Matrix, share: float = 1e-3) -> bool:
    """But for what rounding to 16-bit integers may do."""
    return bool(np.linalg.norm(one - other) <= share * np.linalg.norm(other))


# ---------------------------------------------------------------------- a round


@pytest.mark.parametrize("basis", ["hadamard", "truncated-normal"])
@pytest.mark.parametrize("seeds", ["fresh", "shared"])
@pytest.mark.parametrize("step", [1.0, 2.5])
def test_a_round_adds_the_weighted_mean_of_what_coordinates_stand_for(basis, seeds, step):
    strategy = ferret(basis=basis, seeds=seeds, step=step)
    drawn = scene(strategy, PLAN)
    (after,) = moved(strategy, drawn.next().journal)
    start, expected = vector(toy(strategy).initial_values), mean(drawn)
    assert near(after - start, expected[: len(start)])
    assert np.linalg.norm(expected) > 1e-2


def test_an_entry_has_a_row_for_every_node_in_the_order_of_names():
    strategy = ferret()
    drawn = scene(strategy, PLAN)
    (entry,) = drawn.next().journal
    assignments = {update.node: update.assignment for update in drawn.updates}
    assert entry.tensors[SEEDS].tolist() == [list(seeds_of(strategy, assignments[name])) for name in "012"]
    assert entry.tensors[NUMBERS].shape == (3, 8)
    assert drawn.next(drawn.updates[::-1]).positions == drawn.next().positions


def test_all_nodes_of_a_shared_basis_are_one_row():
    drawn = scene(ferret(seeds="shared"), PLAN)
    (entry,) = drawn.next().journal
    assert entry.tensors[NUMBERS].shape == (1, 8)
    assert len({update.assignment.basis for update in drawn.updates}) == 1


def test_rounds_and_nodes_have_bases_of_their_own():
    strategy = ferret()
    assignments = [scene(strategy, replace(PLAN, seed=8)).updates[n].assignment for n in range(3)]
    assert len({seeds_of(strategy, assignment) for assignment in assignments}) == 3
    assert len({assignment.basis for assignment in assignments}) == 1  # the signs are in common
    profiles = [Profile(1, "0", 0, 5, "store")]
    drawn = [seeds_of(strategy, strategy.assign(profiles, number, 3, 8)["0"]) for number in (1, 2, 3)]
    assert len({seeds.common for seeds in drawn}) == len({seeds.own for seeds in drawn}) == 3


def test_equal_seeds_make_fresh_and_shared_bases_equal():
    """But for rounding: three rows, or their sum."""
    fresh, shared = ferret(), ferret(seeds="shared")
    drawn = scene(shared, PLAN)
    seeds = torch.tensor([[drawn.updates[0].assignment.basis] * 2] * 3)
    rows = [entry.tensors | {SEEDS: seeds} for entry in replace(drawn, strategy=fresh).next().journal]
    apart = moved(fresh, (Entry(1, 0, rows[0]),))[0]
    together = moved(shared, drawn.next().journal)[0]
    start = vector(toy(fresh).initial_values)
    assert near(apart - start, together - start)
    assert not np.array_equal(apart, start)


def test_rows_of_data_decide_how_much_a_node_counts():
    """A node of nearly all rows is nearly alone."""
    strategy = ferret()
    drawn = scene(strategy, replace(PLAN, weights=(10**9, 1, 1)))
    lone = [update for update in drawn.updates if update.node == "0"]
    start = vector(toy(strategy).initial_values)
    both, one = (moved(strategy, state.journal)[0] - start for state in (drawn.next(), drawn.next(lone)))
    assert near(both, one)


# ---------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [3.0] * 5),
        ("linear", [3.0, 2.5, 2.0, 1.5, 1.0]),
        ("cosine", [2 + math.cos(math.pi * n / 4) for n in range(5)]),
    ],
)
def test_the_step_follows_its_schedule(schedule, expected):
    strategy = ferret(step=3.0, final_step=1.0, schedule=schedule)
    assert [strategy.stepped(Assignment(r, 5, 0, 0)) for r in range(1, 6)] == pytest.approx(expected)
    assert strategy.stepped(Assignment(1, 1, 0, 0)) == 3.0


# ---------------------------------------------------------------------- momentum and pool


def rounds_of(strategy: Ferret, number: int) -> tuple[State, list[Matrix]]:
    """The state after some rounds of drawn updates, and what each added by the equations, without momentum."""
    state, means = strategy.initial(toy(strategy)), []
    for n in range(1, number + 1):
        drawn = scene(strategy, replace(PLAN, seed=100 + n))
        updates = [replace(update, assignment=replace(update.assignment, round=n)) for update in drawn.updates]
        means.append(mean(replace(drawn, updates=updates)))
        state = strategy.apply(state, strategy.combine(state, updates), n)
    return state, means


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_is_that_of_a_dense_loop(momentum):
    strategy = ferret(momentum=momentum)
    state, means = rounds_of(strategy, 4)
    place, velocity = vector(toy(strategy).initial_values), 0.0
    start = place
    for found, change in zip(moved(strategy, state.journal), means, strict=True):
        velocity = momentum * velocity + change[: len(place)]
        place = place + velocity
        assert near(found - start, place - start)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_pool_is_the_sum_of_all_rounds(momentum):
    strategy = ferret(seeds="pool", momentum=momentum)
    state, exact, velocity = strategy.initial(toy(strategy)), 0.0, 0.0
    for n in range(1, 5):
        updates = scene(strategy, replace(PLAN, seed=100 + n)).updates
        rows = sum(update.weight for update in updates)
        change = sum(u.weight / rows * row(u.delta).exact().numpy() for u in updates)
        velocity = momentum * velocity + change
        exact = exact + velocity
        state = strategy.apply(state, strategy.combine(state, updates), n)
    np.testing.assert_allclose(state.server[VELOCITY].numpy(), velocity, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(state.tensors[EXACT].numpy(), exact, rtol=1e-3, atol=1e-3)
    assert not state.journal
    model = toy(strategy)
    start = vector(model.initial_values)
    strategy.install(model, strategy.start_of(state, Assignment(5, 5, 0, 0)))
    basis = derive(model.config.seed, "basis")
    given = Coordinates(*(strategy.start_of(state, Assignment(5, 5, 0, 0)).tensors[name] for name in ROW))
    expected = dense(strategy._projection(model.trained), given, Seeds(basis, basis))
    assert near(vector(model.trained) - start, expected[: len(start)], 1e-5)
    assert np.array_equal(vector(model.initial_values), start)


# ---------------------------------------------------------------------- what is refused


def refused(strategy: Ferret, **changed: torch.Tensor) -> str:
    drawn = scene(strategy, PLAN)
    (update, *_) = drawn.updates
    assert strategy.refusal(drawn.state, update) == ""
    assert strategy.refusal(drawn.state, replace(update, delta=nothing_of(update.delta))) == ""
    return strategy.refusal(drawn.state, Update("0", update.assignment, update.delta | changed, 1.0))


@pytest.mark.parametrize("seeds", ["fresh", "shared", "pool"])
def test_rows_that_mean_nothing_are_refused(seeds):
    def counts(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    strategy = ferret(seeds=seeds)
    assert refused(strategy, **{SCALES: torch.tensor([-1e-3])}) == "'scales' holds a negative number"
    for wrong in (7, 9, 0, -8, 2**31 - 1):
        assert "'counts'" in refused(strategy, **{COUNTS: counts(wrong)})


def test_counts_must_fit_their_blocks():
    """15 numbers are one block of 16; a place would be drawn twice."""
    strategy = ferret(coordinates=16)
    state = strategy.initial(toy(strategy))
    assert state.tensors[LENGTHS].tolist() == [16]
    row_ = {name: torch.cat([t, t]) for name, t in state.tensors.items()}
    two = State(row_ | {LENGTHS: torch.tensor([16, 16], dtype=torch.int32)})

    def said(*counts: int) -> str:
        delta = {name: row_[name] for name in ROW} | {COUNTS: torch.tensor(counts, dtype=torch.int32)}
        return strategy.refusal(two, Update("0", Assignment(1, 3, 9, 0), delta, 1.0))

    assert said(16, 16) == ""
    assert said(17, 15) == "'counts' give a block more coordinates than it has elements"
    assert said(33, -1) == "'counts' do not share out 32 coordinates"
    assert said(32, 1) == "'counts' do not share out 32 coordinates"


@pytest.mark.parametrize("coordinates", [17, 4096])
def test_coordinates_that_do_not_fit_the_model_are_said(coordinates):
    strategy = ferret(coordinates=coordinates)
    words = f"ferret.coordinates, ferret.block: 15 numbers in 1 blocks of 256 need .* at most 16, not {coordinates:,}"
    with pytest.raises(RunFailed, match=words):
        strategy.initial(toy(strategy))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ferret.block": 300}, "ferret.block = 300 is not a power of two"),
        ({"ferret.scale": "code"}, "'code' needs ferret.basis = 'truncated-normal'"),
        ({"ferret.block": 128}, "at least 256"),
        ({"tuning": "lora"}, "needs tuning = 'bias' or 'full' or 'head', not 'lora'"),
    ],
)
def test_options_that_do_not_fit_are_said(options, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig.read({"strategy": "ferret", "tuning": "full"} | options)

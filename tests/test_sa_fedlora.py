"""SA-FedLoRA in parts: the schedule of ranks, the shrink, the hand-over, and what initiating rounds minimise."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from laws import FACTORS, WEIGHT, Plan, merged, scene, toy_model, trainer
from matrices import Matrix, tail
from tiers import examples

import strategies
from server_app.config import RunConfig
from strategies.algebra.tensors import Tensors, raw, snapshot
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.types import Assignment, Entry, Profile, RunFailed, State
from strategies.protocol import checkpoint
from strategies.sa_fedlora import SCHEDULES, WAITING, remainder, shrunk
from task.config import TaskConfig
from task.schema import ConfigError

EXAMPLES = examples(100)
STEP = 0.1  # learning rate of the loops below


def annealing(**options: Any) -> Any:
    return strategies.load("sa-fedlora", **options)


# ---------------------------------------------------------------------- the schedule


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Any, int, int]:
    """A strategy, the number of rounds, the largest budget."""
    heating = draw(st.integers(0, 100)) / 100
    cooling = draw(st.integers(0, round(100 - 100 * heating))) / 100
    initiating = draw(st.integers(0, 2))
    strategy = annealing(
        initiating_rounds=initiating,
        schedule=draw(st.sampled_from(SCHEDULES)),
        final_rank=draw(st.integers(1, 12)),
        heating=heating,
        cooling=cooling,
    )
    return strategy, initiating + draw(st.integers(1, 40)), draw(st.integers(1, 64))


def ranks(strategy: Any, rounds: int, highest: int) -> list[int]:
    """Of all rounds after the initiating ones."""
    return [strategy.annealed(number, rounds, highest) for number in range(strategy.initiating_rounds + 1, rounds + 1)]


@EXAMPLES
@given(schedules())
def test_ranks_fall_from_the_largest_budget_to_the_final_rank(drawn):
    strategy, rounds, highest = drawn
    found = ranks(strategy, rounds, highest)
    lowest = min(strategy.final_rank, highest)
    assert all(lowest <= rank <= highest for rank in found)
    assert all(before >= after for before, after in itertools.pairwise(found))
    assert found[-1] == lowest
    heats = math.floor(strategy.heating * len(found) + 1e-9)
    cools = max(1, math.ceil(strategy.cooling * len(found) - 1e-9))
    assert found[: min(heats, len(found) - cools)] == [highest] * min(heats, len(found) - cools)
    assert found[len(found) - cools :] == [lowest] * cools
    if cools < len(found):
        assert found[0] == highest


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # x = 0, 1/4, 1/2, 3/4 between one round of heating (which x = 0 repeats) and one of cooling
        ("linear", [8, 8, 6.5, 5, 3.5, 2]),
        ("cubic", [8, 8, 2 + 6 * 27 / 64, 2 + 6 / 8, 2 + 6 / 64, 2]),
        ("cosine", [8, 8, 2 + 3 * (1 + math.sqrt(0.5)), 5, 2 + 3 * (1 - math.sqrt(0.5)), 2]),
        ("exponential", [8, 8, 8 / math.sqrt(2), 4, 4 / math.sqrt(2), 2]),
    ],
)
@pytest.mark.parametrize("initiating", [0, 1, 2])
def test_a_schedule_by_hand(schedule, expected, initiating):
    strategy = annealing(initiating_rounds=initiating, schedule=schedule, heating=1 / 6, cooling=1 / 6, final_rank=2)
    assert ranks(strategy, 6 + initiating, 8) == [math.floor(rank + 0.5) for rank in expected]


def test_shares_of_rounds_are_whole_where_they_should_be():
    """0.28 of 25 rounds is 7 and 0.29 of 100 is 29; in floats it is a little more, and a little less."""
    strategy = annealing(initiating_rounds=0, heating=0.28, cooling=0.28, schedule="linear", final_rank=1)
    found = ranks(strategy, 25, 100)
    assert found.count(1) == 7
    assert found.count(100) == 7 + 1
    longer = annealing(initiating_rounds=0, heating=0.29, cooling=0.29, schedule="linear", final_rank=1)
    assert ranks(longer, 100, 1000).count(1000) == 29 + 1


@pytest.mark.parametrize("initiating", [0, 1, 2])
def test_assignments_follow_budget_and_schedule(initiating):
    strategy = annealing(initiating_rounds=initiating, schedule="linear", heating=0.0, cooling=0.2, final_rank=2)
    profiles = [Profile(i, str(i), rank, 10, "store") for i, rank in enumerate((1, 4, 8))]
    expected = [[0, 0, 0]] * initiating + [[1, 4, 8], [1, 4, 5], [1, 2, 2]]
    for number, line in enumerate(expected, 1):
        assignments = strategy.assign(profiles, number, 3 + initiating, 7)
        assert [assignment.rank for assignment in assignments.values()] == line
    assert [assignment.rank for assignment in strategy.assign(profiles, 0, 3, 7).values()] == [1, 4, 8]


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("heating", "cooling"), [(0.7, 0.31), (1.0, 0.01), (1.0, 1.0)])
def test_more_heating_and_cooling_than_rounds_is_refused(heating, cooling):
    found = incompatibilities(annealing(heating=heating, cooling=cooling), TaskConfig())
    assert found == [f"sa-fedlora.heating = {heating:g} and sa-fedlora.cooling = {cooling:g} are more than all rounds"]
    with pytest.raises(ConfigError, match="are more than all rounds"):
        RunConfig.read({"strategy": "sa-fedlora", "sa-fedlora.heating": heating, "sa-fedlora.cooling": cooling})


def test_heating_and_cooling_may_be_all_rounds():
    for percent in range(101):
        assert not incompatibilities(annealing(heating=percent / 100, cooling=(100 - percent) / 100), TaskConfig())


@pytest.mark.parametrize("tuning", ["full", "bias", "head"])
def test_it_needs_adapters(tuning):
    with pytest.raises(ConfigError, match=f"needs tuning = 'lora', not '{tuning}'"):
        RunConfig.read({"strategy": "sa-fedlora", "tuning": tuning})


# ---------------------------------------------------------------------- the shrink


@st.composite
def factors(draw: st.DrawFn) -> tuple[Tensors, int]:
    """B and A in float64 of random shapes and rank, and a smaller rank."""
    outputs, inputs, rank = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 8))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    b, a = (torch.randn(*shape, generator=numbers, dtype=torch.float64) for shape in ((outputs, rank), (rank, inputs)))
    head = torch.randn(3, outputs, generator=numbers, dtype=torch.float64)
    return {FACTORS[0]: b, FACTORS[1]: a, "classifier.weight": head}, draw(st.integers(1, rank))


def dense(tensors: Tensors) -> Matrix:
    return (tensors[FACTORS[0]] @ tensors[FACTORS[1]]).numpy()


@EXAMPLES
@given(factors())
def test_a_shrink_loses_the_smallest_singular_values_and_no_more(drawn):
    """Eckart and Young: the squared error is the sum of the squares beyond the rank."""
    tensors, rank = drawn
    small = shrunk(tensors, rank)
    before, after = dense(tensors), dense(small)
    assert small[FACTORS[0]].shape[1] == small[FACTORS[1]].shape[0] == rank
    assert ((before - after) ** 2).sum() == pytest.approx(tail(before, rank), rel=1e-9, abs=1e-18 * (before**2).sum())
    assert small["classifier.weight"] is tensors["classifier.weight"]


@EXAMPLES
@given(factors())
def test_shrunk_factors_are_balanced(drawn):
    """B^T B = A A^T = the singular values, where the product has them."""
    tensors, rank = drawn
    kept = min(rank, *dense(tensors).shape, tensors[FACTORS[1]].shape[0])
    s = np.linalg.svd(dense(tensors), compute_uv=False)[:kept]
    assume(s[-1] > 1e-6 * s[0])
    small = shrunk(tensors, rank)
    b, a = (small[name].numpy() for name in FACTORS)
    np.testing.assert_allclose((b.T @ b)[:kept, :kept], np.diag(s), rtol=0, atol=1e-9 * s[0])
    np.testing.assert_allclose((a @ a.T)[:kept, :kept], np.diag(s), rtol=0, atol=1e-9 * s[0])


def test_a_product_of_zero_can_learn_after_a_shrink():
    """B of zero: A keeps rows, so that B gets a gradient."""
    small = shrunk({FACTORS[0]: torch.zeros(5, 3), FACTORS[1]: torch.randn(3, 4)}, 2)
    assert not small[FACTORS[0]].any()
    assert int(torch.linalg.matrix_rank(small[FACTORS[1]])) == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in small.values())


@EXAMPLES
@given(factors())
def test_what_a_shrink_cuts_off_is_the_remainder(drawn):
    """Its product and that of the small factors make the product that there was; nothing is no entry."""
    tensors, rank = drawn
    small = shrunk(tensors, rank)
    rest = merged([Entry(1, 0, remainder(tensors, small))]).get(WEIGHT, torch.zeros(()))
    before = dense(tensors)
    scale = np.linalg.norm(before)
    np.testing.assert_allclose(dense(small) + rest.numpy(), before, rtol=0, atol=1e-6 * scale)
    assert bool(rest.any()) == (math.sqrt(tail(before, rank)) > 1e-7 * scale)


@pytest.mark.parametrize("kept", ["merge", "drop"])
def test_a_state_is_shrunk_to_the_largest_rank_of_the_round_and_never_grows(kept):
    strategy = annealing(initiating_rounds=0, remainder=kept)
    state = State(snapshot(toy_model(strategy, 4, seed=1).trained))
    once = strategy.begin(state, 3, 2)
    assert len(once.journal) == (kept == "merge")
    assert (state.rank, once.rank) == (4, 2)
    assert strategy.begin(once, 2, 2) is once
    assert strategy.begin(once, 2, 4) is once
    assert strategy.begin(once, 2, 0) is once  # nobody is there


# ---------------------------------------------------------------------- initiating rounds


def by_hand(model: Any, local: Any, mu: float, rate: float) -> Tensors:
    """Gradient descent on F(w) + mu / 2 ||w - w^t||^2 over all weights but the factors; the update."""
    named = {name: p for name, p in model.module.named_parameters() if name not in FACTORS}
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)
    for _ in range(3):
        loss = model.module(**local.rows.batch(range(10))).loss
        gradients = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            for (name, own), gradient in zip(named.items(), gradients, strict=True):
                own -= rate * (gradient + mu * (own - start[name]))
    return {name: (own - start[name]).detach() for name, own in named.items()}


@pytest.mark.parametrize("mu", [0.0, 0.7])
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_all_weights_train_with_the_gradient_of_the_regularisation(mu, rate):
    strategy = annealing(mu=mu, initiating_rate=rate)
    local = trainer(optimizer="sgd", learning_rate=STEP, local_epochs=3, batch_size=10)
    fresh = toy_model(strategy, 3, seed=2)
    fresh.write({FACTORS[0]: torch.zeros_like(fresh.trained[FACTORS[0]])})
    model = toy_model(strategy, 3, seed=2)
    model.write({FACTORS[0]: torch.zeros_like(model.trained[FACTORS[0]])})
    update, metrics = strategy.train(model, local, Assignment(1, 3, 11, 0))
    expected = by_hand(fresh, local, mu, rate or STEP)
    assert update.keys() == expected.keys() == {"m0.weight", "m0.bias", "classifier.weight"}
    for name, delta in expected.items():
        torch.testing.assert_close(update[name], delta, rtol=1e-4, atol=1e-6)
    assert metrics["steps"] == 3
    assert not any(parameter.requires_grad for parameter in model.frozen.values())
    assert not model.trained[FACTORS[0]].any()  # adapters wait


def test_rounds_after_train_the_adapters_alone():
    strategy = annealing()
    model = toy_model(strategy, 3, seed=2)
    before = snapshot(model.frozen)
    update, _ = strategy.train(model, trainer(), Assignment(2, 3, 11, 3))
    assert update.keys() == model.trained.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.frozen.items())


# ---------------------------------------------------------------------- the state


def test_what_adapters_train_waits_and_comes_back_as_it_was():
    drawn = scene(annealing(), Plan((3, 2), (0, 1), (1, 4), 8))
    after = drawn.next()
    fresh = toy_model(drawn.strategy, 3, seed=8).initial_values
    assert after.server.keys() == {WAITING + name for name in fresh}
    begun = drawn.strategy.begin(after, 2, 3)
    (entry,) = begun.journal
    assert entry.round == 1
    assert entry.tensors.keys() == {"m0.weight", "m0.bias"}
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in entry.tensors.items())
    assert begun.tensors.keys() == fresh.keys()
    assert not begun.server
    assert all(torch.equal(begun.tensors[name], fresh[name]) for name in FACTORS)
    assert torch.equal(begun.tensors["classifier.weight"], after.tensors["classifier.weight"])
    assert drawn.strategy.begin(begun, 3, 3) is begun  # once


def test_adapters_alone_cannot_be_initiated():
    drawn = scene(annealing(), Plan((3, 2), (0, 1), (1, 4), 8))
    adapters = drawn.strategy.begin(drawn.next(), 2, 3)
    with pytest.raises(RunFailed, match="initiating-rounds = 0"):
        drawn.strategy.begin(State(adapters.tensors), 1, 3)


def test_what_is_cut_off_adapters_that_were_handed_over_is_added_to_the_base():
    """Without initiating rounds there is no hand-over for it to be taken for."""
    strategy = annealing(initiating_rounds=0, final_rank=1)
    model = toy_model(strategy, 3, seed=8)
    values = torch.Generator().manual_seed(3)
    model.write({name: torch.randn(tensor.shape, generator=values) for name, tensor in model.trained.items()})
    begun = strategy.begin(strategy.initial(model), 1, 1)
    (entry,) = begun.journal
    before = model.frozen[WEIGHT].clone()
    strategy.replay(model, entry)
    added = (model.frozen[WEIGHT] - before) / model.config.tuning.product_scale()
    b, a = (model.trained[name].detach() for name in FACTORS)
    small_b, small_a = (begun.tensors[name] for name in FACTORS)
    torch.testing.assert_close(added, b @ a - small_b @ small_a, rtol=0.0, atol=1e-4)


def test_without_initiating_rounds_nothing_waits_and_no_entry_is_made():
    drawn = scene(annealing(initiating_rounds=0), Plan((3, 2), (0, 1), (1, 4), 8))
    assert drawn.state.tensors.keys() == toy_model(drawn.strategy, 3, 8).trained.keys()
    assert not drawn.next().journal


@pytest.mark.parametrize("begun", [False, True])
def test_a_checkpoint_keeps_all_of_the_state(begun: bool, tmp_path: Path):
    """Before the hand-over with what waits, after it with the entry."""
    drawn = scene(annealing(), Plan((3, 2), (0, 1), (1, 4), 8))
    state = drawn.next()
    if begun:
        state = drawn.strategy.begin(state, 2, 2)
    checkpoint.save(tmp_path / "state.safetensors", state, {})
    again, _ = checkpoint.load(tmp_path / "state.safetensors")
    for mine, theirs in ((again.tensors, state.tensors), (again.server, state.server)):
        assert {n: raw(t) for n, t in mine.items()} == {n: raw(t) for n, t in theirs.items()}
    assert again.positions == state.positions
    one, other = (drawn.strategy.begin(which, 2, 2) for which in (replace(again), state))
    assert one.positions == other.positions
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())

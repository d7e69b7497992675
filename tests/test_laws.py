"""Every strategy against the laws it declares, and the algorithms against float64 loops of their equations.

A file added to `strategies/` is tested here without a change.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given
from laws import LAWS, Scene, distance, plans, scene, toy_model, trainer, variants
from numpy.typing import NDArray
from tiers import examples

import strategies
from strategies.algebra.lowrank import rank_axis, truncated
from strategies.algebra.tensors import Tensors, added
from strategies.exchange.strategy import EXACT, IDENTITY, Strategy
from strategies.exchange.types import Assignment, State, Update
from task.training.trainer import Trainer

CLOSE = 1e-5  # float32 sums of a few numbers of size 1
BROKEN = 1e-3
EXAMPLES = examples(40)
SEARCH = examples(300, least=300, phases=[Phase.generate], database=None)
Values = dict[str, NDArray[np.float64]]

RBLA, ZERO_PAD, FEDAVG = strategies.load("rbla"), strategies.load("zero-pad"), strategies.load("fedavg")


# ---------------------------------------------------------------------- laws


@pytest.mark.fewer
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", strategies.names())
def test_declared_laws_hold_and_the_others_break(name, law):
    if law == EXACT and strategies.load(name).needs_in_place:
        pytest.skip("it has no factors")

    def off(plan):
        return max(LAWS[law](strategy, plan) for strategy in variants(name))

    @EXAMPLES
    @given(plans())
    def holds(plan):
        assert off(plan) <= CLOSE

    if law in strategies.load(name).laws:
        holds()
    else:
        find(plans(), lambda plan: off(plan) > BROKEN, settings=SEARCH, random=random.Random(0))


@pytest.mark.parametrize("name", strategies.names())
def test_laws_are_known(name):
    assert strategies.load(name).laws <= set(LAWS)


@pytest.mark.parametrize("name", strategies.names())
@EXAMPLES
@given(plan=plans())
def test_a_round_keeps_names_shapes_and_dtypes(name, plan):
    for strategy in variants(name):
        drawn = scene(strategy, plan)
        before, after = drawn.state.tensors, drawn.next().tensors
        assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
        assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())


@pytest.mark.parametrize("name", strategies.names())
@EXAMPLES
@given(plan=plans())
def test_a_round_changes_neither_state_nor_updates(name, plan):
    for strategy in variants(name):
        drawn, again = scene(strategy, plan), scene(strategy, plan)
        drawn.next()
        assert distance(drawn.state, again.state) == 0
        for used, fresh in zip(drawn.updates, again.updates, strict=True):
            assert all(torch.equal(used.delta[key], fresh.delta[key]) for key in fresh.delta)


# ---------------------------------------------------------------------- references, in float64 and slice by slice


def slices(name: str, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Views of the slices of a factor; anything else is one slice."""
    axis = rank_axis(name)
    return [values] if axis is None else list(np.moveaxis(values, axis, 0))


def reference(drawn: Scene, *, over_owners: bool) -> Values:
    """sum n_i x_i[k] over owners i of slice k, divided by the rows of the owners or of the whole cohort."""
    result: Values = {}
    everybody = sum(update.weight for update in drawn.updates)
    for name, tensor in drawn.state.tensors.items():
        result[name] = tensor.double().numpy().copy()
        for k, own in enumerate(slices(name, result[name])):
            before, total, rows = own.copy(), np.zeros_like(own), 0.0
            for update in drawn.updates:
                changes = slices(name, update.delta[name].double().numpy())
                if k < len(changes):
                    total += update.weight * (before + changes[k])
                    rows += update.weight
            if not over_owners:
                own[...] = total / everybody
            elif rows:
                own[...] = total / rows
    return result


def assert_close(state: State, expected: Values) -> None:
    assert set(state.tensors) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(state.tensors[name].double().numpy(), values, rtol=0, atol=CLOSE)


@EXAMPLES
@given(plans())
def test_fedavg_is_the_mean_weighted_by_rows(plan):
    drawn = scene(FEDAVG, plan)
    rows = sum(update.weight for update in drawn.updates)
    expected: Values = {}
    for name, tensor in drawn.state.tensors.items():
        expected[name] = np.zeros(tensor.shape)
        for update in drawn.updates:
            trained = tensor.double().numpy() + update.delta[name].double().numpy()
            expected[name] += update.weight / rows * trained
    assert_close(drawn.next(), expected)


@EXAMPLES
@given(plans())
def test_rbla_is_the_mean_over_owners(plan):
    drawn = scene(RBLA, plan)
    assert_close(drawn.next(), reference(drawn, over_owners=True))


@EXAMPLES
@given(plans())
def test_zero_pad_is_the_mean_over_everybody(plan):
    drawn = scene(ZERO_PAD, plan)
    assert_close(drawn.next(), reference(drawn, over_owners=False))


# ---------------------------------------------------------------------- RBLA's identities


def as_zero_pad(drawn: Scene) -> Scene:
    return replace(drawn, strategy=ZERO_PAD)


def share(drawn: Scene, k: int) -> float:
    """c_k: the owners' share of the rows."""
    owners = sum(update.weight for update in drawn.updates if update.assignment.rank > k)
    return owners / sum(update.weight for update in drawn.updates)


@EXAMPLES
@given(plans())
def test_equal_ranks_make_rbla_zero_pad_and_fedavg_the_same(plan):
    drawn = scene(RBLA, replace(plan, budgets=(plan.budgets[0],) * len(plan.budgets)))
    averaged = replace(drawn, strategy=FEDAVG).next()
    assert distance(drawn.next(), averaged) == 0
    assert distance(as_zero_pad(drawn).next(), averaged) <= CLOSE


@EXAMPLES
@given(plans())
def test_a_zero_padded_slice_is_rblas_slice_times_the_owners_share(plan):
    drawn = scene(RBLA, plan)
    ours, padded = drawn.next().tensors, as_zero_pad(drawn).next().tensors
    for name in ours:
        pairs = zip(slices(name, ours[name].double().numpy()), slices(name, padded[name].double().numpy()), strict=True)
        for k, (full, shrunk) in enumerate(pairs):
            factor = 1.0 if rank_axis(name) is None else share(drawn, k)
            np.testing.assert_allclose(shrunk, factor * full, rtol=0, atol=CLOSE)


@EXAMPLES
@given(plans())
def test_zero_pad_shrinks_slices_even_without_learning(plan):
    drawn = scene(ZERO_PAD, plan)
    nothing = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]
    after = drawn.next(nothing).tensors
    for name, tensor in drawn.state.tensors.items():
        pairs = zip(slices(name, tensor.double().numpy()), slices(name, after[name].double().numpy()), strict=True)
        for k, (before, shrunk) in enumerate(pairs):
            factor = 1.0 if rank_axis(name) is None else share(drawn, k)
            np.testing.assert_allclose(shrunk, factor * before, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@EXAMPLES
@given(plan=plans())
def test_a_slice_of_one_owner_is_taken_bit_for_bit(dtype, plan):
    drawn = scene(RBLA, plan)
    state = State({name: tensor.to(dtype) for name, tensor in drawn.state.tensors.items()})
    updates = [replace(u, delta={n: t.to(dtype) for n, t in u.delta.items()}) for u in drawn.updates]
    combined = RBLA.combine(state, updates)
    for name in combined:
        if (axis := rank_axis(name)) is None:
            continue
        for k in range(combined[name].shape[axis]):
            owners = [update for update in updates if update.assignment.rank > k]
            if len(owners) == 1:
                assert torch.equal(combined[name].select(axis, k), owners[0].delta[name].select(axis, k))


@EXAMPLES
@given(plans())
def test_slices_that_nobody_owns_keep_their_value(plan):
    absent = replace(plan, budgets=(*plan.budgets, 7), weights=(*plan.weights, 1))  # one more node, not in the cohort
    drawn = scene(RBLA, absent)
    owned = max(update.assignment.rank for update in drawn.updates)
    assert owned < drawn.state.rank
    after = drawn.next().tensors
    for name, tensor in drawn.state.tensors.items():
        if (axis := rank_axis(name)) is not None:
            kept = slice(owned, None) if axis == 0 else (slice(None), slice(owned, None))
            assert torch.equal(after[name][kept], tensor[kept])


@EXAMPLES
@given(plans())
def test_rbla_of_one_client_is_that_client_bit_for_bit(plan):
    drawn = scene(RBLA, replace(plan, cohort=plan.cohort[:1]))
    (update,) = drawn.updates
    after = RBLA.start_of(drawn.next(), update.assignment).tensors
    trained = added(RBLA.start_of(drawn.state, update.assignment).tensors, update.delta)
    assert all(torch.equal(after[name], trained[name]) for name in trained)


@EXAMPLES
@given(plans())
def test_the_smallest_rank_is_sent_fedavg_of_everyones_first_slices(plan):
    drawn = scene(RBLA, plan)
    smallest = min(drawn.updates, key=lambda update: update.assignment.rank).assignment
    cut: list[Update] = [replace(u, delta=truncated(u.delta, smallest.rank)) for u in drawn.updates]
    averaged = Scene(FEDAVG, State(truncated(drawn.state.tensors, smallest.rank)), cut).next()
    assert distance(RBLA.start_of(drawn.next(), smallest), averaged) == 0


# ---------------------------------------------------------------------- the node's half, with a real model


def trained(strategy: Strategy, local: Trainer) -> Tensors:
    delta, _ = strategy.train(toy_model(strategy, 3, seed=2), local, Assignment(1, 3, 11, 3))
    return delta


@pytest.mark.parametrize("strategy", [s for name in strategies.names() for s in variants(name)], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_nodes_update_has_the_shapes_that_validation_expects(strategy, rank):
    state = strategy.initial(toy_model(strategy, 3, seed=2))
    model = toy_model(strategy, 3, seed=3)
    assignment = Assignment(1, 3, 11, min(rank if strategy.heterogeneous_ranks else 3, state.rank))
    strategy.install(model, strategy.start_of(state, assignment))
    delta, metrics = strategy.train(model, trainer(), assignment)
    rank = int(metrics.get("rank", assignment.rank))
    expected = truncated(strategy.expected(state, assignment), rank)
    assert {n: (t.shape, t.dtype) for n, t in delta.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert any(bool(tensor.any()) for tensor in delta.values())
    held = {**strategy.exchanged(model), **strategy.live(model, assignment)}
    if IDENTITY in strategy.laws and rank == state.rank and held.keys() >= delta.keys():
        combined = strategy.combine(state, [Update("0", assignment, delta, 10.0)])
        after = strategy.apply(state, combined, 1).tensors
        own = {name: tensor.detach() for name, tensor in held.items() if name in after}
        assert own.keys() >= delta.keys()
        assert distance(State({name: after[name] for name in own}), State(own)) <= CLOSE


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fedprox_without_its_term_is_fedavg_bit_for_bit(optimizer):
    local = trainer(optimizer=optimizer, learning_rate=0.1)
    plain, held = trained(FEDAVG, local), trained(strategies.load("fedprox", mu=0.0), local)
    assert all(torch.equal(plain[name], held[name]) for name in plain)


def test_fedprox_adds_mu_times_the_distance_to_the_gradient():
    mu, rate = 0.7, 0.2
    local = trainer(optimizer="sgd", learning_rate=rate, local_epochs=3, batch_size=10)
    model = toy_model(FEDAVG, 3, seed=2)
    start = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
    for _ in range(3):
        loss = model.module(**local.rows.batch(range(10))).loss
        gradients = torch.autograd.grad(loss, list(model.trained.values()))
        with torch.no_grad():
            for (name, own), gradient in zip(model.trained.items(), gradients, strict=True):
                own -= rate * (gradient + mu * (own - start[name]))
    held, free = trained(strategies.load("fedprox", mu=mu), local), trained(FEDAVG, local)
    for name, own in model.trained.items():
        torch.testing.assert_close(held[name], (own - start[name]).detach(), rtol=1e-4, atol=1e-6)
        assert float(held[name].norm()) < float(free[name].norm())

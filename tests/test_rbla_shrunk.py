"""RBLA with shrunk owners against a float64 reference; its two ends are RBLA and a mean over all nodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import FACTORS, Plan, Scene, distance, plans, scene
from matrices import Matrix
from tiers import examples

import strategies
from strategies.exchange.types import Update

CLOSE = 1e-5  # float32 factors of size 1
EXAMPLES = examples(60)
SHRUNK, RBLA, FEDAVG = (strategies.load(name) for name in ("rbla-shrunk", "rbla", "fedavg"))
RAGGED = Plan((2, 2, 6), (0, 1, 2), (30, 40, 30), 7)  # slices 2 to 5 have one owner, with .3 of the rows


def factor(update: Update, k: int) -> Matrix:
    """Slice k of both factors, as one vector."""
    b, a = (update.delta[name].double().numpy() for name in FACTORS)
    return np.concatenate([b[:, k], a[k]])


def mean(updates: list[Update], k: int) -> Matrix:
    rows = sum(update.weight for update in updates)
    return np.asarray(sum(update.weight / rows * factor(update, k) for update in updates))


def shares(drawn: Scene) -> list[float]:
    """s_k of every slice that somebody has, from the equations."""
    least, most = (bound(update.assignment.rank for update in drawn.updates) for bound in (min, max))
    rows, found = sum(update.weight for update in drawn.updates), []
    for k in range(most):
        owners = [update for update in drawn.updates if update.assignment.rank > k]
        share = sum(update.weight for update in owners) / rows
        everybodys = np.concatenate([mean(drawn.updates, j) for j in range(least)])
        theirs = np.concatenate([mean(owners, j) for j in range(least)])
        found.append(min(1.0, max(share, float(everybodys @ theirs / (theirs @ theirs)))))
    return found


def moved(drawn: Scene) -> Matrix:
    """What each slice has moved by, a row for each."""
    after = drawn.next().tensors
    b, a = (after[name].double().numpy() - drawn.state.tensors[name].double().numpy() for name in FACTORS)
    return np.concatenate([b.T, a], axis=1)


def taught(drawn: Scene, common: list[float]) -> Scene:
    """The scene, where node i learns common[i] in entry i of the slices that all have, if it is not shared."""
    updates = []
    for node, (update, size) in enumerate(zip(drawn.updates, common, strict=True)):
        delta = {name: tensor.clone() for name, tensor in update.delta.items()}
        delta[FACTORS[0]][:, :2], delta[FACTORS[1]][:2] = 0.0, 0.0
        delta[FACTORS[0]][node if size < 0 else 0, 0] = abs(size)
        updates.append(replace(update, delta=delta))
    return replace(drawn, updates=updates)


@EXAMPLES
@given(plans())
def test_it_is_the_equations(plan: Plan) -> None:
    drawn = scene(SHRUNK, plan)
    found = moved(drawn)
    expected = np.zeros_like(found)
    for k, share in enumerate(shares(drawn)):
        owners = [update for update in drawn.updates if update.assignment.rank > k]
        expected[k] = share * mean(owners, k)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)
    head, fedavg = (replace(drawn, strategy=rule).next().tensors["classifier.weight"] for rule in (SHRUNK, RBLA))
    assert torch.equal(head, fedavg)


@EXAMPLES
@given(plans())
def test_it_is_between_rbla_and_the_mean_over_all(plan: Plan) -> None:
    drawn = scene(SHRUNK, plan)
    owners = replace(drawn, strategy=RBLA)
    rows = sum(update.weight for update in drawn.updates)
    for k, (found, full) in enumerate(zip(moved(drawn), moved(owners), strict=True)):
        share = sum(update.weight for update in drawn.updates if update.assignment.rank > k) / rows
        assert share * np.linalg.norm(full) - CLOSE <= np.linalg.norm(found) <= np.linalg.norm(full) + CLOSE


@EXAMPLES
@given(plans(), st.integers(1, 6))
def test_with_equal_ranks_it_is_fedavg(plan: Plan, rank: int) -> None:
    drawn = scene(SHRUNK, replace(plan, budgets=(rank,) * len(plan.budgets)))
    assert distance(drawn.next(), replace(drawn, strategy=FEDAVG).next()) <= CLOSE


def test_owners_that_learn_what_everybody_learns_move_their_slices_in_full() -> None:
    drawn = taught(scene(SHRUNK, RAGGED), [0.5, 0.5, 0.5])
    np.testing.assert_allclose(moved(drawn), moved(replace(drawn, strategy=RBLA)), rtol=0, atol=CLOSE)


def test_owners_that_learn_something_else_move_them_by_their_share() -> None:
    drawn = taught(scene(SHRUNK, RAGGED), [-0.5, -0.5, -0.5])
    full = moved(replace(drawn, strategy=RBLA))
    np.testing.assert_allclose(moved(drawn)[:2], full[:2], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(moved(drawn)[2:], 0.3 * full[2:], rtol=0, atol=CLOSE)


def test_owners_that_learn_twice_as_much_are_halved() -> None:
    """The others learn the same, half as far: m = (.7 x .5 + .3) m_k."""
    drawn = taught(scene(SHRUNK, RAGGED), [0.25, 0.25, 0.5])
    np.testing.assert_allclose(moved(drawn)[2:], 0.65 * moved(replace(drawn, strategy=RBLA))[2:], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("rows", [1.0, 1e-6])
def test_nothing_learned_in_common_slices_counts_as_something_else(rows: float) -> None:
    drawn = taught(scene(SHRUNK, RAGGED), [0.0, 0.0, 0.0])
    drawn = replace(drawn, updates=[replace(update, weight=rows * update.weight) for update in drawn.updates])
    full = moved(replace(drawn, strategy=RBLA))
    np.testing.assert_allclose(moved(drawn)[2:], 0.3 * full[2:], rtol=0, atol=CLOSE)

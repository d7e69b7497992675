"""raFLoRA and FlexLoRA against one float64 reference, slice by slice; FlexLoRA's decay, which raFLoRA has not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from laws import FACTORS, Plan, Scene, distance, plans, scene
from matrices import Matrix, product, singular_values
from tiers import examples

import strategies
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, State, Update

CLOSE = 1e-5  # float32 factors of size 1
EXAMPLES = examples(60)
FLEX, RAFLORA = strategies.load("flex-lora"), strategies.load("raflora")
RULES = [FLEX, RAFLORA]


def reference(drawn: Scene, *, over_owners: bool) -> Matrix:
    """sum_i n_i B_i[:, k] A_i[k, :] for every slice k, over the rows of its owners or of all; summed over slices."""
    state_b, state_a = (drawn.state.tensors[name].double().numpy() for name in FACTORS)
    total = np.zeros((state_b.shape[0], state_a.shape[1]))
    for k in range(state_a.shape[0]):
        term, rows, everybody = np.zeros_like(total), 0.0, 0.0
        for update in drawn.updates:
            everybody += update.weight
            if update.assignment.rank > k:
                b, a = (update.delta[name].double().numpy() for name in FACTORS)
                term += update.weight * np.outer(state_b[:, k] + b[:, k], state_a[k] + a[k])
                rows += update.weight
        if not over_owners:
            total += term / everybody
        elif rows:
            total += term / rows
        else:
            total += np.outer(state_b[:, k], state_a[k])
    return total


def cut(matrix: Matrix, rank: int) -> Matrix:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def unlearned(drawn: Scene) -> list[Update]:
    return [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]


@pytest.mark.parametrize("strategy", RULES, ids=lambda strategy: strategy.name)
@EXAMPLES
@given(plan=plans())
def test_both_rules_are_the_reference_split_by_svd(strategy: Strategy, plan: Plan) -> None:
    drawn = scene(strategy, plan)
    expected, after = reference(drawn, over_owners=strategy is RAFLORA), drawn.next()
    s = singular_values(expected)
    for rank in {*plan.budgets, drawn.state.rank}:
        assume(rank >= len(s) or s[rank - 1] - s[rank] > 1e-2 * s[0])  # else two directions are as good
        start = strategy.start_of(after, Assignment(1, 3, 0, rank)).tensors
        np.testing.assert_allclose(product(start), cut(expected, rank), rtol=0, atol=CLOSE * max(1.0, s[0]))
    rows = sum(update.weight for update in drawn.updates)
    change = sum(update.weight / rows * update.delta["classifier.weight"].double() for update in drawn.updates)
    head = drawn.state.tensors["classifier.weight"].double() + change
    torch.testing.assert_close(after.tensors["classifier.weight"].double(), head, rtol=0.0, atol=CLOSE)


@EXAMPLES
@given(plans(), st.integers(1, 6))
def test_with_equal_ranks_it_is_flex_lora(plan: Plan, rank: int) -> None:
    drawn = scene(RAFLORA, replace(plan, budgets=(rank,) * len(plan.budgets)))
    ours, theirs = drawn.next().tensors, replace(drawn, strategy=FLEX).next().tensors
    size = max(1.0, float(np.linalg.norm(product(theirs))))
    np.testing.assert_allclose(product(ours), product(theirs), rtol=0, atol=CLOSE * size)


@EXAMPLES
@given(plans())
def test_updates_of_zero_keep_the_product_at_any_ranks(plan: Plan) -> None:
    drawn = scene(RAFLORA, plan)
    once = drawn.next(unlearned(drawn))
    again = replace(drawn, state=once).next(unlearned(drawn))
    before = product(drawn.state.tensors)
    for state in (once, again):
        np.testing.assert_allclose(product(state.tensors), before, rtol=0, atol=CLOSE * np.linalg.norm(before))


def test_a_slice_of_one_owner_has_its_owners_size() -> None:
    """The others' rows do not dilute what only node 2 has and learns; FlexLoRA's mean takes a tenth of it."""
    for strategy, share in ((RAFLORA, 1.0), (FLEX, 0.1)):
        drawn = scene(strategy, Plan((1, 1, 3), (0, 1, 2), (60, 30, 10), 7))
        state = State(drawn.state.tensors | {FACTORS[0]: torch.zeros_like(drawn.state.tensors[FACTORS[0]])})
        updates = unlearned(drawn)
        column = torch.arange(1.0, 6.0)
        updates[2].delta[FACTORS[0]][:, 2] = column
        after = replace(drawn, state=state).next(updates).tensors
        expected = share * np.outer(column, state.tensors[FACTORS[1]][2])
        np.testing.assert_allclose(product(after), expected, rtol=0, atol=CLOSE * np.linalg.norm(expected))


# ---------------------------------------------------------------------- the decay

RANKS, SHARES = (2, 4, 6), (0.2, 0.3, 0.5)
OWNED = np.array([1.0, 1.0, 0.8, 0.8, 0.5, 0.5])  # of each slice, by those shares


def idle(strategy: Strategy, rounds: int) -> list[Matrix]:
    """The six singular values before, and after each of some rounds in which nobody learns anything."""
    numbers = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(side, 6, generator=numbers))[0] for side in (9, 8))
    values = torch.tensor([8.0, 7.0, 5.0, 4.0, 2.0, 1.0])  # far enough apart to keep their order
    state = State({FACTORS[0]: left * values, FACTORS[1]: right.T})
    seen = [singular_values(product(state.tensors))[:6]]
    for round in range(1, rounds + 1):
        updates: list[Update] = []
        for node, (rank, rows) in enumerate(zip(RANKS, SHARES, strict=True)):
            assignment = Assignment(round, rounds, 0, rank)
            nothing: Tensors = {n: torch.zeros_like(t) for n, t in strategy.expected(state, assignment).items()}
            updates.append(Update(str(node), assignment, nothing, 10 * rows))
        state = strategy.apply(state, strategy.combine(state, updates), round)
        seen.append(singular_values(product(state.tensors))[:6])
    return seen


def test_flex_lora_multiplies_singular_values_by_their_owners_share_in_every_round() -> None:
    start, *after = idle(FLEX, 3)
    for round, values in enumerate(after, 1):
        np.testing.assert_allclose(values, start * OWNED**round, rtol=1e-5)


def test_raflora_does_not() -> None:
    start, *after = idle(RAFLORA, 3)
    for values in after:
        np.testing.assert_allclose(values, start, rtol=1e-5)


# ---------------------------------------------------------------------- memory


def test_many_updates_are_summed_as_a_few_are() -> None:
    """Beyond twice the smaller side of the matrix the sums are rewritten."""
    drawn = scene(RAFLORA, Plan((3, 1, 2), (0, 1, 2), (5, 3, 2), 4))
    many = [replace(update, weight=update.weight / 50) for _ in range(50) for update in drawn.updates]
    whole, parts = drawn.next(), drawn.next(many)
    assert distance(whole, parts) <= CLOSE

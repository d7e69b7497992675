"""LoRA-FAIR's correction and FLoRIST's truncated stack, against dense matrices in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import FACTORS, LAWS, WEIGHT, Plan, Scene, distance, merged, plans, scene
from matrices import mean_product, product, singular_values
from tiers import examples

import strategies
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import EXACT

B, A = FACTORS
CLOSE = 1e-5
EXAMPLES = examples(60)
FEDAVG, FAIR = strategies.load("fedavg"), strategies.load("lora-fair")


def factors(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    return tensors[B].double().numpy(), tensors[A].double().numpy()


def alike(drawn: Scene, name: str) -> Scene:
    """The same cohort, of which all nodes learned the first node's change of one factor."""
    first = drawn.updates[0].delta[name]
    return replace(drawn, updates=[replace(u, delta=u.delta | {name: first}) for u in drawn.updates])


# ---------------------------------------------------------------------- LoRA-FAIR


@EXAMPLES
@given(plans(), st.sampled_from([0.001, 0.01, 1.0]))
def test_b_is_corrected_by_ridge_regression(plan: Plan, ridge: float) -> None:
    drawn = scene(strategies.load("lora-fair", ridge=ridge), plan)
    b, a = factors(replace(drawn, strategy=FEDAVG).next().tensors)
    residual = mean_product(drawn) - b @ a
    # One least squares problem: min ||residual - dB A||^2 + ridge ||dB||^2, as rows of an augmented system.
    wide = np.concatenate([a, np.sqrt(ridge) * np.eye(len(a))], axis=1)
    target = np.concatenate([residual, np.zeros((len(b), len(a)))], axis=1)
    correction = np.linalg.lstsq(wide.T, target.T, rcond=None)[0].T
    ours = drawn.next().tensors
    np.testing.assert_allclose(ours[B].double().numpy(), b + correction, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours[A].double().numpy(), a, rtol=0, atol=CLOSE)
    assert np.linalg.norm(mean_product(drawn) - product(ours)) <= np.linalg.norm(residual) + CLOSE


@pytest.mark.parametrize("name", FACTORS)
@EXAMPLES
@given(plan=plans())
def test_nothing_is_corrected_where_a_factor_is_the_same_for_all(name: str, plan: Plan) -> None:
    drawn = alike(scene(FAIR, plan), name)
    assert distance(drawn.next(), replace(drawn, strategy=FEDAVG).next()) <= 1e-4


@EXAMPLES
@given(plans())
def test_a_large_ridge_is_fedavg(plan: Plan) -> None:
    drawn = scene(strategies.load("lora-fair", ridge=1e9), plan)
    assert distance(drawn.next(), replace(drawn, strategy=FEDAVG).next()) <= CLOSE


def test_without_a_ridge_it_is_exact_where_the_rank_spans_all_rows() -> None:
    full, narrow = Plan((4, 4), (0, 1), (1, 3), 2), Plan((2, 2), (0, 1), (1, 3), 2)
    free = strategies.load("lora-fair", ridge=0.0)
    assert LAWS[EXACT](free, full) <= 1e-4
    assert LAWS[EXACT](free, narrow) > 1e-3
    assert LAWS[EXACT](FEDAVG, full) > 1e-3


def test_an_a_of_zero_corrects_nothing() -> None:
    drawn = scene(strategies.load("lora-fair", ridge=0.0), Plan((2, 2), (0, 1), (1, 3), 2))
    state = replace(drawn.state, tensors=drawn.state.tensors | {A: torch.zeros_like(drawn.state.tensors[A])})
    updates = [replace(u, delta=u.delta | {A: torch.zeros_like(u.delta[A])}) for u in drawn.updates]
    one = replace(drawn, state=state, updates=updates)
    assert distance(one.next(), replace(one, strategy=FEDAVG).next()) <= CLOSE


# ---------------------------------------------------------------------- FLoRIST


@EXAMPLES
@given(plans(), st.sampled_from([0.5, 0.8, 0.9, 0.99]))
def test_the_least_singular_values_with_enough_energy_are_merged(plan: Plan, energy: float) -> None:
    drawn = scene(strategies.load("flora", energy=energy), plan)
    mean = mean_product(drawn)
    u, s, vh = np.linalg.svd(mean)
    kept = next(p for p in range(1, len(s) + 1) if (s[:p] ** 2).sum() >= (energy - 1e-12) * (s**2).sum())
    made = merged(drawn.next().journal)[WEIGHT].numpy()
    np.testing.assert_allclose(made, (u[:, :kept] * s[:kept]) @ vh[:kept], rtol=0, atol=CLOSE * max(1.0, s[0]))
    assert np.linalg.norm(made - mean) ** 2 <= (1 - energy) * (s**2).sum() + CLOSE * s[0]
    np.testing.assert_allclose(singular_values(made)[:kept], s[:kept], rtol=0, atol=CLOSE * max(1.0, s[0]))


@EXAMPLES
@given(plans())
def test_all_the_energy_is_flora_bit_for_bit(plan: Plan) -> None:
    whole, plain = (scene(strategies.load("flora", **chosen), plan).next() for chosen in ({"energy": 1.0}, {}))
    assert whole.positions == plain.positions


def test_it_is_exact_no_more() -> None:
    plan = Plan((2, 2), (0, 1), (1, 3), 2)
    assert LAWS[EXACT](strategies.load("flora"), plan) <= CLOSE
    assert LAWS[EXACT](strategies.load("flora", energy=0.8), plan) > 1e-3


def test_fewer_singular_values_are_fewer_numbers() -> None:
    plan = Plan((2, 2, 2), (0, 1, 2), (1, 3, 2), 2)
    sizes = [scene(strategies.load("flora", energy=e), plan).next().numbers for e in (0.5, 1.0)]
    assert sizes[0] < sizes[1]

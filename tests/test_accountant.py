"""Epsilons agree with dp-accounting's own, asked directly; noise that is looked for is the least; clips hold."""

import math
import warnings

import dp_accounting
import pytest
import torch
from dp_accounting import NeighboringRelation, rdp
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy import stats

from strategies.algebra.accountant import Draw, epsilon_of, gaussian_epsilon, least_gaussian_noise, least_noise
from strategies.algebra.clipping import clipped, norm
from task import private
from task.secret import normal, uniform

GAUSSIAN = dp_accounting.GaussianDpEvent


def theirs(event: dp_accounting.DpEvent, rounds: int, delta: float, relation: NeighboringRelation) -> float:
    accountant = rdp.RdpAccountant(neighboring_relation=relation)  # its own orders
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize("delta", [1e-3, 1e-5])
@pytest.mark.parametrize("rounds", [1, 50, 1000])
@pytest.mark.parametrize("rate", [0.01, 0.125, 1.0])
@pytest.mark.parametrize("noise", [0.8, 1.1, 4.0])
def test_poisson_cohorts_cost_what_dp_accounting_says(noise: float, rate: float, rounds: int, delta: float) -> None:
    event = dp_accounting.PoissonSampledDpEvent(rate, GAUSSIAN(noise))
    expected = theirs(event, rounds, delta, NeighboringRelation.ADD_OR_REMOVE_ONE)
    assert epsilon_of({Draw(rate): rounds}, noise, delta) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("rounds", [1, 50])
@pytest.mark.parametrize(("nodes", "size"), [(256, 32), (10, 5), (10, 10)])
@pytest.mark.parametrize("noise", [1.6, 2.26, 8.0])
def test_cohorts_of_fixed_size_cost_what_dp_accounting_says_of_two_clips(
    noise: float, nodes: int, size: int, rounds: int
) -> None:
    event = dp_accounting.SampledWithoutReplacementDpEvent(nodes, size, GAUSSIAN(noise / 2))
    if nodes == size:
        event = GAUSSIAN(noise / 2)
    expected = theirs(event, rounds, 1e-3, NeighboringRelation.REPLACE_ONE)
    assert epsilon_of({Draw(nodes=nodes, size=size): rounds}, noise, 1e-3) == pytest.approx(expected, rel=0.01)


def test_rounds_of_several_draws_are_composed() -> None:
    accountant = rdp.RdpAccountant()
    for rate, rounds in ((0.1, 20), (0.3, 5)):
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, GAUSSIAN(1.0)), rounds)
    mine = epsilon_of({Draw(0.1): 20, Draw(0.3): 5}, 1.0, 1e-5)
    assert mine == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)
    assert epsilon_of({}, 1.0, 1e-5) == 0.0
    assert epsilon_of({Draw(0.1): 1}, 0.0, 1e-5) == math.inf
    with pytest.raises(ValueError, match="no guarantee in common"):
        epsilon_of({Draw(0.1): 1, Draw(nodes=10, size=1): 1}, 1.0, 1e-5)


@pytest.mark.parametrize("draw", [Draw(0.125), Draw(1.0), Draw(nodes=64, size=8)])
def test_the_least_noise_is_the_least(draw: Draw) -> None:
    noise = least_noise(draw, 50, 8.0, 1e-3)
    assert epsilon_of({draw: 50}, noise, 1e-3) <= 8.0 < epsilon_of({draw: 50}, noise * 0.998, 1e-3)


def test_the_noise_of_the_setting_that_is_measured() -> None:
    """256 nodes at rate 1/8, 50 rounds, epsilon 8 at 1e-3: what fixed cohorts need is counted over two clips."""
    assert least_noise(Draw(0.125), 50, 8.0, 1e-3) == pytest.approx(0.797, abs=2e-3)
    assert least_noise(Draw(nodes=256, size=32), 50, 8.0, 1e-3) / 2 == pytest.approx(1.13, abs=1e-2)


def test_an_epsilon_below_what_can_be_accounted_for_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise is enough"):
        least_noise(Draw(0.125), 50, 1e-3, 1e-12)


@pytest.mark.parametrize("noise", [4.0, 10.0, 60.0])
@pytest.mark.parametrize("rounds", [1, 10, 100])
def test_a_message_by_itself_costs_what_the_gaussian_mechanism_does(noise: float, rounds: int) -> None:
    """Balle and Wang's condition in float64: at the epsilon that is found, delta is what was asked for."""
    epsilon = gaussian_epsilon(rounds, noise, 1e-5)
    shift = 2 * math.sqrt(rounds) / noise
    delta = stats.norm.cdf(shift / 2 - epsilon / shift) - math.exp(epsilon) * stats.norm.cdf(
        -shift / 2 - epsilon / shift
    )
    assert delta == pytest.approx(1e-5, rel=1e-3)


def test_noise_for_messages_fits_their_budget() -> None:
    noise = least_gaussian_noise(20, 8.0, 1e-5)
    assert 7.99 < gaussian_epsilon(20, noise, 1e-5) <= 8.0


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.1, 100), (0.7, 0.5, 10), (2.0, 1.0, 30)])
def test_steps_of_dp_sgd_cost_what_opacus_and_dp_accounting_say(noise: float, rate: float, steps: int) -> None:
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    mine = private._epsilon(noise, rate, steps, 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert mine == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    event = dp_accounting.PoissonSampledDpEvent(rate, GAUSSIAN(noise))
    assert mine == pytest.approx(theirs(event, steps, 1e-5, NeighboringRelation.ADD_OR_REMOVE_ONE), rel=0.02)


# ---------------------------------------------------------------------- clips


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    st.floats(1e-6, 1e4),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_no_norm_is_beyond_the_bound(numbers: list[float], bound: float, dtype: torch.dtype) -> None:
    update = {"a": torch.tensor(numbers).clamp(-6e4, 6e4).to(dtype), "b": torch.tensor([[numbers[0]]]).clamp(-9, 9)}
    sent = clipped(update, bound)
    exact = math.sqrt(sum(float(x) ** 2 for tensor in sent.values() for x in tensor.double().flatten()))
    assert exact <= bound * (1 + 1e-12)
    assert {n: t.dtype for n, t in sent.items()} == {n: t.dtype for n, t in update.items()}
    if norm(update) <= bound:
        assert sent is update


def test_a_clip_keeps_the_direction_over_all_tensors() -> None:
    sent = clipped({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}, 1.0)
    torch.testing.assert_close(torch.cat([t.flatten() for t in sent.values()]), torch.tensor([0.6, 0.0, 0.8]))


# ---------------------------------------------------------------------- noise

MANY = 3 * 2**20 + 1  # more than is drawn at a time, and odd
BOUND = 6  # standard errors


def test_moments_of_the_noise_are_those_of_a_normal_distribution() -> None:
    """Mean, variance, third and fourth moment of 3 million numbers, each within six of its standard errors."""
    drawn = normal((MANY,), 2.5) / 2.5
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs(float((drawn**power).mean()) - mean) < BOUND * math.sqrt(variance / MANY)


def test_noise_has_the_tails_and_the_independence_of_a_normal_distribution() -> None:
    drawn = normal((MANY,), 1.0)
    for threshold in (0.5, 1.0, 2.0, 3.0, 4.0):
        share = 2 * stats.norm.sf(threshold)
        found = float((drawn.abs() > threshold).double().mean())
        assert abs(found - share) < BOUND * math.sqrt(share * (1 - share) / MANY)
    half = (MANY - 1) // 2
    for one, other in ((drawn[:-1], drawn[1:]), (drawn[:half], drawn[half : 2 * half])):  # pairs are far apart
        assert abs(float((one * other).mean())) < BOUND / math.sqrt(len(one))


def test_uniform_numbers_are_above_zero_and_even() -> None:
    drawn = uniform(2**20)
    counts = torch.histc(drawn, 64, 0, 1).double()
    assert float(drawn.min()) > 0
    assert float(drawn.max()) <= 1
    chi_square = float(((counts - 2**14) ** 2 / 2**14).sum())
    assert abs(chi_square - 63) < BOUND * math.sqrt(2 * 63)


def test_noise_ignores_every_seed() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(normal((4, 3), 1.0))
    assert drawn[0].shape == (4, 3)
    assert not torch.equal(*drawn)
    assert normal((0, 5), 1.0).shape == (0, 5)
    assert float(normal((), 0.0)) == 0.0

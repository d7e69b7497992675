"""The learning rate of a round: constant, or falling by a cosine to the last round, after a warm-up if wanted."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import InProcessGrid, watched

import client_app
import strategies
from task.config import TaskConfig
from task.training.rates import to_start_from

ROUNDS = 3


@given(st.floats(1e-6, 1.0), st.floats(0.0, 1.0), st.integers(1, 40))
def test_it_falls_from_one_to_the_other(most: float, share: float, rounds: int) -> None:
    config = TaskConfig(learning_rate=most, learning_rate_min=most * share)
    rates = [config.rate(round, rounds) for round in range(1, rounds + 1)]
    assert math.isclose(rates[0], most)
    assert all(before >= after for before, after in pairwise(rates))
    if rounds > 1:
        assert math.isclose(rates[-1], most * share or most)


def test_without_a_least_it_stays_to_the_bit() -> None:
    config = TaskConfig(learning_rate=0.007)
    assert {config.rate(round, 15) for round in range(1, 16)} == {0.007}


@given(st.integers(0, 5), st.integers(1, 8), st.floats(0.0, 1.0))
def test_a_warm_up_rises_in_equal_steps_and_then_all_is_as_without(warm: int, rounds: int, share: float) -> None:
    config = TaskConfig(learning_rate=0.006, learning_rate_min=0.006 * share)
    warmed = replace(config, warmup_rounds=warm)
    rates = [warmed.rate(round, warm + rounds) for round in range(1, warm + rounds + 1)]
    assert rates[:warm] == pytest.approx([0.006 * round / (warm + 1) for round in range(1, warm + 1)])
    assert rates[warm:] == [config.rate(round, rounds) for round in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("warm", "least", "shares"), [(0, 0.0, (1, 1, 1)), (0, 1e-6, (1, 0.55, 0.1)), (2, 0.0, (1, 2, 3))]
)
def test_nodes_step_by_the_rate_of_the_round(warm: int, least: float, shares: tuple[float, ...]) -> None:
    """All rows in one step, and steps so short that the gradient stays what it was."""
    options = {"tuning": "head", "optimizer": "sgd", "local-steps": 1, "batch-size": 1000, "learning-rate": 1e-5}
    grid = InProcessGrid(client_app.app, 2)
    schedule = {"learning-rate-min": least, "warmup-rounds": warm, "num-server-rounds": ROUNDS}
    seen = watched(strategies.load("fedavg"), {**options, **schedule}, ROUNDS, grid)
    states = [torch.cat([t.double().flatten() for t in state.tensors.values()]) for _, state in seen]
    steps = [float(torch.linalg.vector_norm(after - before)) for before, after in pairwise(states)]
    assert [step / steps[0] for step in steps] == pytest.approx(shares, rel=0.02)


@pytest.mark.parametrize(
    ("options", "parameters", "said"),
    [
        ({"learning-rate": 5e-3}, 494_000_000, True),
        ({"learning-rate": 2e-4}, 494_000_000, False),
        ({"learning-rate": 5e-3}, 260_032, False),
        ({"learning-rate": 5e-3, "tuning": "full"}, 494_000_000, False),
        ({"learning-rate": 5e-3, "optimizer": "sgd"}, 494_000_000, False),
        ({"learning-rate": 5e-3, "task.kind": "token-classification", "data.partitioner": "iid"}, 494_000_000, False),
    ],
)
def test_rates_far_from_usual_for_adapters_on_large_language_models_are_said(
    options: dict[str, object], parameters: int, said: bool
) -> None:
    language = {"task.kind": "causal-lm", "model.name": "some/model", "data.name": "some/rows"}
    config = TaskConfig.read(language | {"data.output-column": "text"} | options)
    assert ("usually start from 0.0001 to 0.0003" in to_start_from(config, parameters)) is said

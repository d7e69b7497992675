"""A server optimizer is one file: the one that CONTRIBUTING shows has a name, options, laws and federations at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import test_server_optimizers as laws
import torch
from added import added, example
from in_process import federate

import strategies
from server_app.config import RunConfig
from strategies.registry import OPTIMIZERS
from task.schema import ConfigError


@pytest.fixture
def contributed(tmp_path: Path) -> Iterator[str]:
    """The server optimizer that CONTRIBUTING.md shows."""
    name, text = example(OPTIMIZERS)
    with added(OPTIMIZERS, {name: text}, tmp_path / "more"):
        yield name


def test_it_has_a_name_and_options(contributed: str) -> None:
    run = RunConfig.read({"server-optimizer": contributed, f"server-{contributed}.learning-rate": 0.5})
    assert run.strategy.server_optimizer == strategies.load_optimizer(contributed, learning_rate=0.5)
    with pytest.raises(ConfigError, match=f"server-{contributed}.beta1 must be at most 0.999"):
        RunConfig.read({"server-optimizer": contributed, f"server-{contributed}.beta1": 1.0})
    with pytest.raises(ConfigError, match="needs updates that add up to a step"):
        RunConfig.read({"server-optimizer": contributed, "strategy": "flora"})


def test_its_steps_are_the_papers(contributed: str) -> None:
    """Two rounds by hand: c = .9 m + .1 Delta, m = .99 m + .01 Delta."""
    optimizer = strategies.load_optimizer(contributed, learning_rate=0.5)
    means = torch.tensor([[2.0, -3.0], [-1.0, 0.5]], dtype=torch.float64)
    moments = {"mean": torch.zeros(2, dtype=torch.float64)}
    steps = []
    for mean in means:
        step, moments = optimizer.step(mean, moments)
        steps.append(step.tolist())
    assert steps == [[0.5, -0.5], [-0.5, 0.5]]
    torch.testing.assert_close(moments["mean"], 0.99 * 0.01 * means[0] + 0.01 * means[1])


@pytest.mark.parametrize("strategy", ["rbla", "zero-pad"])
def test_it_keeps_the_laws_of_moments(contributed: str, strategy: str) -> None:
    optimizer = strategies.load_optimizer(contributed)
    laws.test_moments_have_the_shape_of_the_state(optimizer, strategy)
    laws.test_ranks_that_nobody_owned_rest_with_their_moments(optimizer)


def test_it_federates(contributed: str, tmp_path: Path) -> None:
    outcome = federate(tmp_path / "run", {"server-optimizer": contributed, "num-server-rounds": 2})
    assert outcome.summary["status"] == "completed"
    assert any(name.startswith(f"{contributed} mean ") for name in outcome.state().server)

"""Federations with a liar: the mean is ruined, robust rules are not."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from in_process import federate, retold

from strategies.exchange import compatibility
from strategies.exchange.strategy import Strategy
from strategies.wrappers.quantize import SCALES

NODES: dict[str, Any] = {
    "simulation.num-supernodes": 5,
    "tuning": "head",
    "num-server-rounds": 2,
    "outlier-factor": 0.0,  # else such updates are refused before any rule sees them
}


def lying(partition: int, kind: str, reply: Message) -> Message:
    """Node 2 sends huge numbers of either sign, finite and in the right form."""

    def huge(name: str, tensor: torch.Tensor) -> torch.Tensor:
        signs = torch.arange(tensor.numel()).remainder(2) * 2 - 1
        values = signs * (1e6 if tensor.is_floating_point() else 99)
        return (values.abs() if name == SCALES else values).reshape(tensor.shape).to(tensor.dtype)

    if kind == "train" and partition == 2:
        return retold(reply, lambda tensors: {name: huge(name, t) for name, t in tensors.items()})
    return reply


def after(folder: Path, wrappers: str = "", **options: Any) -> tuple[float, float]:
    """The largest number in the last state, and the loss of that, after rounds with a liar."""
    outcome = federate(folder, NODES | {"wrappers": wrappers} | options, spoil=lying)
    assert not any(line["refused"] for line in outcome.rounds[-1]["nodes"])
    return max(float(tensor.abs().max()) for tensor in outcome.state().tensors.values()), outcome.rounds[-1]["loss"]


@pytest.mark.judged
def test_a_liar_ruins_the_mean(tmp_path: Path) -> None:
    largest, loss = after(tmp_path)
    assert largest > 1e5
    assert loss > 1e3


@pytest.mark.judged
@pytest.mark.first(1)
@pytest.mark.parametrize(
    "wrappers", ["median", "trimmed-mean", "norm-bound", "norm-bound,median,half", "median,quantize"]
)
def test_a_liar_does_not_ruin_a_robust_rule(tmp_path: Path, wrappers: str) -> None:
    largest, loss = after(tmp_path, wrappers, **{"trimmed-mean.trim": 0.2, "norm-bound.bound": 0.5})
    assert largest < 2
    assert loss < 6


def test_a_liar_is_refused_by_its_norm(tmp_path: Path) -> None:
    options = NODES | {"wrappers": "norm-bound", "norm-bound.bound": 100.0, "norm-bound.action": "refuse"}
    outcome = federate(tmp_path, options, spoil=lying)
    for entry in outcome.rounds[1:]:
        refused = {line["node"]: line["refused"] for line in entry["nodes"] if line["refused"]}
        assert list(refused) == ["2"]
        assert "more than norm-bound.bound = 100" in refused["2"]


@pytest.mark.first(1)
@pytest.mark.parametrize(("strategy", "tuning"), list(itertools.product(["fedavg", "fedprox"], ["lora", "bias"])))
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_a_rule_goes_round_every_mean(tmp_path: Path, strategy: str, tuning: str, rule: str) -> None:
    outcome = federate(tmp_path, {"strategy": strategy, "tuning": tuning, "wrappers": rule})
    assert outcome.summary["status"] == "completed"
    assert not any(line["refused"] for line in outcome.rounds[1]["nodes"])
    loaded: Strategy = outcome.run.strategy
    assert compatibility.combination(loaded) != loaded.combine

"""Local privacy: what leaves a node is clipped and noised there, and each node keeps its own budget."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import equal, federate

import strategies
from strategies.algebra.accountant import Release, epsilon_of
from strategies.algebra.clipping import norm
from strategies.exchange.privacy import Plan
from strategies.exchange.types import Assignment, Profile, Refused
from strategies.protocol.replies import INSTALLED

ASSIGNMENT = Assignment(1, 10, 0, 0)
WIDE = {"w": torch.randn(400, 300, generator=torch.Generator().manual_seed(1)), "b": torch.zeros(5)}
SAME = {"data.partitioner": "iid", "num-server-rounds": 2, "tuning": "bias", "wrappers": "local-privacy"}


def test_the_noise_on_an_update_has_the_moments_that_the_account_is_of() -> None:
    local = strategies.load_wrapper("local-privacy", noise=3.0, clip=0.5, epsilon=0.0)
    clip_alone = strategies.load_wrapper("local-privacy", clip=0.5, epsilon=0.0).encode(WIDE, ASSIGNMENT, {})
    assert norm(clip_alone) <= 0.5
    sent = local.encode(WIDE, ASSIGNMENT, {})
    drawn = torch.cat([(sent[n].double() - clip_alone[n].double()).flatten() for n in WIDE]) / (3.0 * 0.5)
    for power, (expected, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs(float((drawn**power).mean()) - expected) < 6 * math.sqrt(variance / len(drawn))
    assert not torch.equal(sent["w"], local.encode(WIDE, ASSIGNMENT, {})["w"])


def test_an_assignment_without_noise_is_refused_under_a_budget() -> None:
    with pytest.raises(Refused, match="the assignment has no noise"):
        strategies.load_wrapper("local-privacy").encode(WIDE, ASSIGNMENT, {})


def test_the_server_counts_for_the_node_that_it_asked_most_often() -> None:
    nodes = [Profile(i, str(i), 8, 10, "store") for i in range(3)]
    local = strategies.load_wrapper("local-privacy", noise=20.0, epsilon=1.0)
    account = local.mechanism(Plan(10, 3, 1.0))
    assert account is not None
    for number, chosen in enumerate((nodes[:2], nodes[1:], nodes[1:2]), 1):
        assert not account.exhausted()
        account.spend(account.able(nodes, number), chosen, number)
    assert account.spent()["epsilon"] == epsilon_of({Release(20.0 / 2): 3}, 1e-5)
    again = local.mechanism(Plan(10, 3, 1.0))
    assert again is not None
    again.restore(account.memory())
    assert again.spent() == account.spent()
    assert epsilon_of({Release(20.0 / 2): 4}, 1e-5) > 1.0 or not account.exhausted()


def test_whole_numbers_are_refused_on_the_node() -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        strategies.load_wrapper("local-privacy", noise=1.0).encode({"n": torch.tensor([1])}, ASSIGNMENT, {})


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"strategy": "ffa-lora", "tuning": "lora"}])
def test_switched_off_a_run_is_the_plain_one_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    off = SAME | {"local-privacy.epsilon": 0.0, "local-privacy.clip": 0.0} | options
    plain = off | {"wrappers": ""}
    assert equal(federate(tmp_path, plain).state().tensors, federate(tmp_path, off).state().tensors)


@pytest.mark.slow
def test_nothing_that_was_measured_leaves_a_node(tmp_path: Path) -> None:
    outcome = federate(tmp_path, SAME | {"wrappers": "local-privacy,quantize"})
    assert outcome.summary["status"] == "completed"
    assert 7.9 < outcome.summary["epsilon"] <= 8
    for exchange in outcome.grid.of("train"):
        assert exchange.reply is not None
        said = exchange.reply.metric_records["metrics"]
        assert set(said) == {"num-examples", "server-round", "steps", INSTALLED}


@pytest.mark.slow
def test_a_run_ends_where_the_budget_does(tmp_path: Path) -> None:
    options = {"num-server-rounds": 9, "local-privacy.noise": 4.0, "local-privacy.epsilon": 4.5}
    outcome = federate(tmp_path, SAME | options)
    last = outcome.summary["rounds"]
    assert outcome.summary["status"] == "completed"
    assert "is spent" in outcome.summary["stopped"]
    assert epsilon_of({Release(4.0 / 2): last}, 1e-5) <= 4.5 < epsilon_of({Release(4.0 / 2): last + 1}, 1e-5)
    assert not any(node["refused"] for line in outcome.rounds for node in line["nodes"])

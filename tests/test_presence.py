"""Under Poisson sampling with noise nobody can tell from a state whether another node was drawn, or is there at all."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from in_process import InProcessGrid, equal, federate, spoiled

import client_app
from strategies.exchange import cohort
from strategies.exchange.types import RunFailed
from strategies.protocol import wire

SAME: dict[str, Any] = {
    "data.partitioner": "iid",
    "num-server-rounds": 3,
    "tuning": "bias",
    "wrappers": "central-privacy",
    "central-privacy.noise": 1.0,
    "central-privacy.epsilon": 0.0,
    "central-privacy.delta": 1e-3,
    "fraction-train": 1.0,
}


def erring(partition: int, kind: str, reply: Message) -> Message:
    """Every node errs when it trains."""
    if kind == "train":
        raise ValueError("on purpose")
    return reply


def bad(partition: int, kind: str, reply: Message) -> Message:
    return spoiled(reply) if kind == "train" else reply


@pytest.mark.first(1)
@pytest.mark.parametrize("spoil", [erring, bad])
def test_no_good_reply_at_all_becomes_noise(spoil: Any, tmp_path: Path) -> None:
    """A round that failed left the state as it was, and told whoever erred that no other node was drawn."""
    outcome = federate(tmp_path, SAME | {"num-server-rounds": 1}, InProcessGrid(client_app.app, 3, spoil=spoil))
    assert [line["failed"] for line in outcome.rounds] == ["", ""]
    assert all(node["refused"] for node in outcome.rounds[1]["nodes"])
    start, after = wire.unpack(outcome.grid.of("train")[0].request).tensors, outcome.state().tensors
    drawn = torch.cat([(after[name].double() - start[name].double()).flatten() for name in start]) * 3
    assert float(drawn.std()) == pytest.approx(1.0, rel=0.1)  # noise of one clip over the three that are expected


@pytest.mark.slow
def test_many_rounds_without_a_good_reply_do_not_end_the_run(tmp_path: Path) -> None:
    options = SAME | {"num-server-rounds": 5, "max-failed-rounds": 1}
    outcome = federate(tmp_path, options, InProcessGrid(client_app.app, 3, spoil=erring))
    assert outcome.summary["status"] == "completed"
    assert outcome.summary["failed-rounds"] == 0


class Deserted(InProcessGrid):
    """After the opening nobody is connected."""

    looks = 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return super().get_node_ids() if self.looks <= 2 else []


def test_a_round_without_any_node_is_noise_too(tmp_path: Path) -> None:
    outcome = federate(tmp_path, SAME, Deserted(client_app.app, 3))
    assert [line["failed"] for line in outcome.rounds] == [""] * 4
    assert not outcome.grid.of("train")
    assert len({line["loss"] for line in outcome.rounds}) == 4


def test_who_rests_is_not_drawn_because_too_few_others_are_there(tmp_path: Path, monkeypatch: Any) -> None:
    """A node that does not answer rests. Where all others are gone it was asked all the same, so to be asked, or to
    see a state with its update in it, told that nobody else was there."""
    seen: list[list[str]] = []
    inner = cohort.poisson

    def listening(present: Any, rate: float, source: Any) -> Any:
        seen.append([profile.name for profile in present])
        return inner(present, rate, source)

    monkeypatch.setattr(cohort, "poisson", listening)
    silent = InProcessGrid(client_app.app, 2, spoil=lambda p, k, r: None if k == "train" else r)
    outcome = federate(tmp_path, SAME | {"round-timeout": 0.1}, silent)
    assert seen == [["0", "1"], [], ["0", "1"]]
    assert [line["failed"] for line in outcome.rounds] == [""] * 4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"central-privacy.noise": 0.0}, {"wrappers": ""}])
def test_without_noise_rounds_fail_as_before(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="3 failed rounds in a row"):
        federate(tmp_path, SAME | options, InProcessGrid(client_app.app, 3, spoil=erring))


@pytest.mark.first(1)
@pytest.mark.parametrize("drawn", [True, False])
def test_a_node_that_errs_on_purpose_sees_the_same_whether_the_victim_was_drawn(drawn: bool, tmp_path: Path) -> None:
    """The attack of the issue: the attacker errs in every round and looks whether the next state has moved. The victim
    is drawn, and answers, or is not there; either way every state that the attacker is sent has moved."""

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if kind == "train" and partition == 1:
            raise ValueError("on purpose")
        return reply

    grid = InProcessGrid(client_app.app, 2, spoil=spoil)
    if not drawn:
        grid.away = {0}
    outcome = federate(tmp_path, SAME | {"num-server-rounds": 6}, grid)
    sent = [wire.unpack(one.request).tensors for one in outcome.grid.of("train") if one.partition == 1]
    assert len(sent) == 6
    assert not any(equal(one, other) for one, other in itertools.pairwise(sent))
    assert not any(line["failed"] for line in outcome.rounds)

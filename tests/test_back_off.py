"""Nodes that do not answer rest, and are asked again; what a node installed; who does not fit before round 1."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from entries import at_the_base
from flwr.app import ConfigRecord, Error, Message
from in_process import InProcessGrid, Outcome, Spoil, equal, federate, resumed, spoiled

import client_app
from strategies.exchange.types import RunFailed, State
from strategies.protocol.install_hash import expected, install_hash_of
from strategies.protocol.replies import INSTALLED
from strategies.rounds.run_state import RunState
from task.versions import differing, versions, written

QUICK = {"tuning": "head", "round-timeout": 0.1}


def asked(outcome: Outcome, node: str) -> list[int]:
    """The rounds in which a node was asked to train."""
    return [entry["round"] for entry in outcome.rounds if any(line["node"] == node for line in entry["nodes"])]


def silent(partition: int, replies: int) -> Spoil:
    """A node whose first so many replies to training never come."""
    lost = []

    def spoil(which: int, kind: str, reply: Message) -> Message | None:
        if which != partition or kind != "train" or len(lost) == replies:
            return reply
        lost.append(which)
        return None

    return spoil


# ------------------------------------------------------------------------------- back-off


@pytest.mark.slow
def test_a_silent_node_rests_for_1_2_and_4_rounds(tmp_path: Path) -> None:
    outcome = federate(tmp_path, QUICK | {"num-server-rounds": 13}, spoil=silent(1, 3))
    assert asked(outcome, "1") == [1, 3, 6, 11, 12, 13]  # the fourth time it answers, and all is forgotten
    assert asked(outcome, "0") == asked(outcome, "2") == list(range(1, 14))
    assert [entry["resting"] for entry in outcome.rounds[:6]] == [[], [], ["1"], [], ["1"], ["1"]]
    refused = {line["refused"] for entry in outcome.rounds for line in entry["nodes"]}
    assert refused == {"", "no reply before the deadline"}


def test_rests_end_at_eight_rounds() -> None:
    run_state, rests = RunState(), []
    round = 1
    for _ in range(6):
        rest = run_state.missed("a", round)
        assert run_state.missed("a", round) == rest  # its evaluation in the same round is not missed once more
        assert not run_state.rested("a", round)
        rests.append(rest.until - round - 1)
        round = rest.until
        assert run_state.rested("a", round)
    assert rests == [1, 2, 4, 8, 8, 8]
    run_state.heard("a")
    assert run_state.missed("a", round).until == round + 2


@pytest.mark.first(1)
@pytest.mark.parametrize(("code", "rests"), [(3, True), (5, True), (8, True), (2, False)])
def test_who_cannot_be_reached_rests_and_who_answers_badly_does_not(tmp_path: Path, code: int, rests: bool) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if (partition, kind) == (1, "train"):
            return Message(Error(code, "gone"), reply_to=reply)
        return reply

    outcome = federate(tmp_path, QUICK | {"num-server-rounds": 3}, spoil=spoil)
    assert asked(outcome, "1") == ([1, 3] if rests else [1, 2, 3])


@pytest.mark.first(1)
def test_a_bad_reply_is_an_answer(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        return spoiled(reply) if (partition, kind) == (1, "train") else reply

    assert asked(federate(tmp_path, QUICK | {"num-server-rounds": 2}, spoil=spoil), "1") == [1, 2]


@pytest.mark.first(1)
def test_where_all_would_rest_all_are_asked(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message | None:
        return None if kind == "train" else reply

    with pytest.raises(RunFailed, match="3 failed rounds in a row"):
        federate(tmp_path, QUICK | {"num-server-rounds": 5, "max-failed-rounds": 3}, spoil=spoil)


@pytest.mark.first(1)
def test_too_few_awake_for_the_minimum_and_all_are_drawn_from(tmp_path: Path) -> None:
    outcome = federate(tmp_path, QUICK | {"num-server-rounds": 2, "min-train-nodes": 3}, spoil=silent(1, 1))
    assert asked(outcome, "1") == [1, 2]


@pytest.mark.first(1)
def test_who_missed_training_is_not_asked_to_evaluate_in_that_round(tmp_path: Path) -> None:
    outcome = federate(tmp_path, QUICK | {"num-server-rounds": 2, "evaluate": "nodes"}, spoil=silent(1, 1))
    evaluated = [partition for partition, kind in outcome.grid.log if kind == "evaluate"]
    assert evaluated == [0, 1, 2, 0, 2, 0, 2]


@pytest.mark.first(1)
def test_a_node_that_restarts_is_asked_at_once(tmp_path: Path) -> None:
    class Restarting(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            if len(self.of("train")) == 3 and 1 in {self.partitions[node_id] for node_id in self.contexts}:
                self.restart(1)
            return super().get_node_ids()

    outcome = federate(tmp_path, QUICK | {"num-server-rounds": 2}, Restarting(client_app.app, 3, spoil=silent(1, 1)))
    assert asked(outcome, "1") == [1, 2]


@pytest.mark.slow
def test_a_resumed_run_lets_the_same_nodes_rest(tmp_path: Path) -> None:
    whole = federate(tmp_path / "whole", QUICK | {"num-server-rounds": 4}, spoil=silent(1, 1))
    part = federate(tmp_path / "part", QUICK | {"num-server-rounds": 1}, spoil=silent(1, 1))
    outcome = resumed(part.folder, {"num-server-rounds": 4})
    assert asked(outcome, "1") == asked(whole, "1") == [1, 3, 4]
    assert equal(outcome.state().tensors, whole.state().tensors)


@pytest.mark.first(1)
def test_a_late_reply_does_not_count_in_the_next_round(tmp_path: Path) -> None:
    """Node 1 answers round 2 with what it made of round 1."""
    late: list[Message] = []

    def spoil(partition: int, kind: str, reply: Message) -> Message | None:
        if (partition, kind) != (1, "train"):
            return reply
        late.append(reply)
        return Message(late[0].content, reply_to=reply) if len(late) == 2 else reply

    outcome = federate(tmp_path, QUICK | {"num-server-rounds": 2}, spoil=spoil)
    (line,) = [line for line in outcome.rounds[2]["nodes"] if line["node"] == "1"]
    assert line["refused"] == "it answers a round other than 2"


# ------------------------------------------------------------------------------- what a node installed


def test_the_install_hash_is_of_the_models_tensors() -> None:
    model = at_the_base()
    start = State({name: torch.randn_like(tensor) for name, tensor in model.trained.items()} | {"own": torch.ones(2)})
    model.write({name: tensor for name, tensor in start.tensors.items() if name != "own"})
    right = expected(start.tensors, "", model.base.fingerprint)
    assert install_hash_of(model, start) == right
    assert 0 <= right < 2**63
    assert expected(start.tensors, "a" * 32, model.base.fingerprint) != right
    assert expected(start.tensors, "", "another") != right
    name = next(iter(model.trained))
    with torch.no_grad():
        model.trained[name].view(-1)[-1].add_(1e-3)
    assert install_hash_of(model, start) != right


@pytest.mark.first(1)
@pytest.mark.parametrize("said", [None, 0, 1.5])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_who_installed_something_else_is_dropped(tmp_path: Path, kind: str, said: Any) -> None:
    def spoil(partition: int, which: str, reply: Message) -> Message:
        if (partition, which) == (1, kind):
            metrics = reply.content.metric_records["metrics"]
            assert isinstance(metrics.pop(INSTALLED), int)
            if said is not None:
                metrics[INSTALLED] = said
        return reply

    outcome = federate(tmp_path, QUICK | {"evaluate": "nodes"}, spoil=spoil)
    refused = [line["refused"] for line in outcome.rounds[1]["nodes"]]
    if kind == "train":
        assert [bool(reason) for reason in refused] == [False, True, False]
        assert f"it installed something else ({said}) than it was sent (" in refused[1]
    else:
        whole = federate(tmp_path, QUICK | {"evaluate": "nodes"})
        assert not any(refused)
        assert outcome.rounds[1]["nodes-num-examples"] < whole.rounds[1]["nodes-num-examples"]
    assert INSTALLED not in outcome.rounds[1]["nodes"][0]["metrics"]


@pytest.mark.first(1)
def test_an_install_that_leaves_something_out_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from task.models.model import TunedModel

    write = TunedModel.write

    def forgetful(model: TunedModel, tensors: dict[str, torch.Tensor]) -> None:
        write(model, dict(list(tensors.items())[1:]))

    grid = InProcessGrid(client_app.app, 3)
    answer = grid.delivered

    def answering(message: Message) -> Message | None:
        with monkeypatch.context() as patch:
            if grid.partitions[message.metadata.dst_node_id] == 1 and len(grid.of("train")) > 3:
                patch.setattr(TunedModel, "write", forgetful)
            return answer(message)

    grid.delivered = answering  # type: ignore[method-assign]
    lines = federate(tmp_path, QUICK | {"num-server-rounds": 2}, grid).rounds[2]["nodes"]
    assert [bool(line["refused"]) for line in lines] == [False, True, False]
    assert "installed something else" in lines[1]["refused"]


# ------------------------------------------------------------------------------- who fits


@pytest.mark.first(1)
@pytest.mark.parametrize("key", ["min-available-nodes", "min-train-nodes"])
def test_a_run_does_not_start_where_too_few_fit(tmp_path: Path, key: str) -> None:
    bad = {0: {"rank": 0}, 2: {"data-path": "/nowhere.csv"}}
    with pytest.raises(RunFailed, match=rf"1 of 3 nodes can take part, {key} is 2: node \d+: .*; node \d+: ") as raised:
        federate(tmp_path, {key: 2}, node_configs=bad)
    assert "rank = 0 must be a whole number above 0" in str(raised.value)
    assert "there is no file or folder /nowhere.csv" in str(raised.value)
    assert federate(tmp_path, {key: 1}, node_configs=bad).summary["status"] == "completed"


def test_a_node_of_other_labels_is_left_out(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if (partition, kind) == (1, "query.profile"):
            profile = reply.content.config_records["profile"]
            assert (profile["labels-fit"], profile["labels"]) == (True, [])
            reply.content["profile"] = ConfigRecord({**profile, "labels-fit": False, "labels": ["x", "y"]})
        return reply

    with pytest.raises(RunFailed, match=r"its labels are not among the run's, '0\|1\|2.*9'; it has 'x\|y'"):
        federate(tmp_path, {"min-train-nodes": 3}, spoil=spoil)


def test_other_versions_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = written(versions())
    assert all(f"{name} " in ours for name in ("python", "torch", "transformers", "peft", "flwr"))
    assert "(none)" not in ours

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if (partition, kind) == (1, "query.profile"):
            assert reply.content.config_records["profile"]["versions"] == ours
            said = ours.replace(f"torch {versions()['torch']}", "torch 0.1")
            reply.content["profile"] = ConfigRecord({**reply.content.config_records["profile"], "versions": said})
        return reply

    caplog.set_level(logging.WARNING, "flwr")
    federate(tmp_path, QUICK, spoil=spoil)
    assert f"node 1 has torch 0.1, the server {ours}: bits may differ" in caplog.messages
    assert not differing(ours, ours)

"""Nodes that fail or lie: the round goes on without them, says who and why, and a run without good replies fails."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from in_process import Outcome, federate, left, retold

from strategies.exchange.types import Entry, RunFailed, State
from strategies.protocol import checkpoint, wire

EIGHT = {
    "simulation.num-supernodes": 8,
    "data.train-rows": 200,
    "tuning": "head",
    "num-server-rounds": 2,
    "min-success-fraction": 0.25,
    "round-timeout": 0.5,
}
WEIGHT, BIAS = "classifier.weight", "classifier.bias"


def with_metric(name: str, value: Any) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord({**reply.content.metric_records["metrics"], name: value})
        return reply

    return change


def without(record: str) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        del reply.content[record]
        return reply

    return change


def raises(reply: Message) -> Message:
    raise ValueError("the disk is full")


def silent(reply: Message) -> None:
    return None


def not_a_number(reply: Message) -> Message:
    return retold(reply, lambda t: t | {BIAS: torch.full_like(t[BIAS], float("nan"))})


def infinite(reply: Message) -> Message:
    return retold(reply, lambda t: t | {BIAS: torch.full_like(t[BIAS], float("inf"))})


def strange_name(reply: Message) -> Message:
    return retold(reply, lambda t: {WEIGHT: t[WEIGHT], "classifier.scale": t[BIAS]})


def extra_name(reply: Message) -> Message:
    return retold(reply, lambda t: t | {"vit.embeddings.cls_token": torch.zeros(1)})


def broadcastable(reply: Message) -> Message:
    return retold(reply, lambda t: t | {WEIGHT: t[WEIGHT][:1]})


def other_dtype(reply: Message) -> Message:
    return retold(reply, lambda t: t | {BIAS: t[BIAS].double()})


def with_journal(reply: Message) -> Message:
    sent = wire.unpack(reply.content)
    for name, record in wire.pack(State(sent.tensors, (Entry(1, 1, {"x": torch.ones(1)}),))).items():
        reply.content[name] = record
    return reply


def cut_short(reply: Message) -> Message:
    array = reply.content.array_records["arrays"]["flat"]
    array.data = array.data[:-4]
    reply.content["arrays"] = ArrayRecord({"flat": array})
    return reply


def padded(reply: Message) -> Message:
    array = reply.content.array_records["arrays"]["flat"]
    array.data += b"\0" * 4
    reply.content["arrays"] = ArrayRecord({"flat": array})
    return reply


def broken_index(reply: Message) -> Message:
    reply.content.config_records["index"]["index"] = b"\x80\x04."
    return reply


WAYS: dict[Callable[[Message], Message | None], str] = {
    raises: "node error 2: .*the disk is full",
    silent: "no reply before the deadline",
    not_a_number: r"'classifier\.bias' holds NaN or infinity",
    infinite: r"'classifier\.bias' holds NaN or infinity",
    strange_name: r"'classifier\.bias' missing",
    extra_name: r"'vit\.embeddings\.cls_token' not asked for",
    broadcastable: r"'classifier\.weight' has shape \(1, 64\), expected \(10, 64\)",
    other_dtype: r"'classifier\.bias' has dtype torch\.float64, expected torch\.float32",
    with_journal: "an update has no journal",
    cut_short: "unreadable record: .* end inside a tensor",
    padded: "record holds 2604 bytes, its index accounts for 2600",
    broken_index: "unreadable record: .*the index cannot be decompressed",
    without("metrics"): "it has no metrics",
    without("arrays"): "unreadable record: .*arrays",
    without("index"): "unreadable record: .*index",
    with_metric("num-examples", 0): "num-examples must be a positive whole number, not 0",
    with_metric("num-examples", -5): "num-examples must be a positive whole number, not -5",
    with_metric("num-examples", 10**15): "num-examples must be a positive whole number, not 10{15}",
    with_metric("num-examples", 2.5): r"num-examples must be a positive whole number, not 2\.5",
    with_metric("train-loss", float("nan")): "metric 'train-loss' is nan",
    with_metric("train-loss", [1.0, 2.0]): "metric 'train-loss' is not a number",
    with_metric("server-round", 7): "it answers a round other than 1",
}


def assert_says(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


def spoiling(ways: dict[int, Callable[[Message], Message | None]]) -> Callable[[int, str, Message], Message | None]:
    """Train replies of some partitions, spoilt."""
    return lambda partition, kind, reply: ways[partition](reply) if kind == "train" and partition in ways else reply


# ------------------------------------------------------------------------------- some are bad
@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("healthy"), EIGHT)


@pytest.mark.slow
def test_a_round_goes_on_without_bad_replies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, healthy: Outcome
) -> None:
    ways = {1: raises, 2: not_a_number, 4: strange_name, 5: broadcastable, 7: silent}
    caplog.set_level(logging.WARNING, "flwr")
    outcome = federate(tmp_path, EIGHT, spoil=spoiling(ways))
    assert outcome.summary["status"] == "completed"
    for entry in outcome.rounds[1:]:
        assert not entry["failed"]
        refused = {line["node"]: line["refused"] for line in entry["nodes"] if line["refused"]}
        asked = {partition: way for partition, way in ways.items() if str(partition) not in entry["resting"]}
        assert ways.keys() - asked.keys() == ({7} if entry["round"] == 2 else set())
        assert refused.keys() == {str(partition) for partition in asked}
        for partition, way in asked.items():
            assert_says(WAYS[way], refused[str(partition)])
            logged = [
                r.message
                for r in caplog.records
                if f"round {entry['round']}: dropped the reply of node {partition}:" in r.message
            ]
            assert len(logged) == 1
            assert refused[str(partition)] in logged[0]
    assert "Refused replies" in (outcome.folder / "report.html").read_text()
    assert any((outcome.state().tensors[name] != t).any() for name, t in healthy.state().tensors.items())


@pytest.mark.slow
def test_bad_replies_leave_no_trace(tmp_path: Path) -> None:
    """The state is the one that the good nodes make alone, whatever the others sent."""
    states = []
    for number, way in enumerate((raises, not_a_number, broadcastable)):
        folder = tmp_path / str(number)
        states.append(
            federate(folder, EIGHT | {"num-server-rounds": 1}, spoil=spoiling({0: way, 3: way})).state().tensors
        )
    for other in states[1:]:
        assert all(torch.equal(states[0][name], tensor) for name, tensor in other.items())


@pytest.mark.first(1)
@pytest.mark.parametrize("first", range(0, len(WAYS), 6))
def test_every_kind_of_bad_reply_is_named(tmp_path: Path, first: int) -> None:
    ways = dict(enumerate(list(WAYS)[first : first + 6]))
    rounds = federate(tmp_path, EIGHT | {"num-server-rounds": 1}, spoil=spoiling(ways)).rounds
    refused = {line["node"]: line["refused"] for line in rounds[1]["nodes"]}
    for partition, way in ways.items():
        assert_says(f"^{WAYS[way]}", refused[str(partition)])
    assert not refused["7"]


# ------------------------------------------------------------------------------- too many are bad
def test_all_bad_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"2 failed rounds in a row.*0 of 8 replies were good.*the disk is full"):
        federate(tmp_path, EIGHT, spoil=spoiling(dict.fromkeys(range(8), raises)))
    summary, rounds = left(tmp_path)
    assert summary["status"] == "failed"
    assert "the disk is full" in summary["error"]
    assert summary["failed-rounds"] == 2
    assert [bool(entry["failed"]) for entry in rounds] == [False, True, True]
    assert (tmp_path / "latest" / "report.html").exists()
    assert not (tmp_path / "latest" / "model").exists()


@pytest.mark.slow
def test_the_state_stays_in_a_failed_round(tmp_path: Path) -> None:
    before = federate(tmp_path / "one", EIGHT | {"num-server-rounds": 1})
    with pytest.raises(RunFailed, match="1 failed rounds in a row"):
        federate(tmp_path / "two", EIGHT, spoil=from_round(2, raises))
    summary, rounds = left(tmp_path / "two")
    assert (summary["status"], summary["failed-rounds"]) == ("failed", 1)
    after, _ = checkpoint.load(tmp_path / "two" / "latest" / "checkpoints" / checkpoint.LAST)
    for name, tensor in before.state().tensors.items():
        assert torch.equal(tensor, after.tensors[name])
    assert rounds[2]["accuracy"] == rounds[1]["accuracy"]
    assert (tmp_path / "two" / "latest" / "model" / "best").exists()  # what the good round left


@pytest.mark.slow
def test_a_failed_round_has_a_quality_where_nodes_measure_it(tmp_path: Path) -> None:
    """The state is there even though the round failed, so `final` is what it scores."""
    with pytest.raises(RunFailed):
        federate(tmp_path, EIGHT | {"evaluate": "nodes"}, spoil=from_round(2, raises))
    summary, rounds = left(tmp_path)
    assert summary["final"] == rounds[1]["accuracy"]


def from_round(number: int, way: Callable[[Message], Message | None]) -> Callable[[int, str, Message], Message | None]:
    """All train replies spoilt, from a round on."""

    def spoil(partition: int, kind: str, reply: Message) -> Message | None:
        late = kind == "train" and reply.content.metric_records["metrics"]["server-round"] >= number  # type: ignore
        return way(reply) if late else reply

    return spoil


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("fraction", "bad", "fails"), [(0.75, 2, False), (0.75, 3, True), (1.0, 1, True), (0.0, 7, False)]
)
def test_min_success_fraction(tmp_path: Path, fraction: float, bad: int, fails: bool) -> None:
    options = EIGHT | {"num-server-rounds": 1, "min-success-fraction": fraction}
    spoil = spoiling(dict.fromkeys(range(bad), raises))
    if fails:
        with pytest.raises(RunFailed, match=f"{8 - bad} of 8 replies were good, {round(8 * fraction)} are needed"):
            federate(tmp_path, options, spoil=spoil)
    else:
        assert not federate(tmp_path, options, spoil=spoil).rounds[1]["failed"]


@pytest.mark.slow
def test_a_good_round_forgives_failed_ones(tmp_path: Path) -> None:
    """max-failed-rounds counts failures in a row."""

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if kind == "train" and reply.content.metric_records["metrics"]["server-round"] in (1, 2, 4, 5):
            raise ValueError("busy")
        return reply

    options = EIGHT | {"num-server-rounds": 6, "max-failed-rounds": 3, "simulation.num-supernodes": 2}
    outcome = federate(tmp_path, options, spoil=spoil)
    assert outcome.summary["failed-rounds"] == 4
    with pytest.raises(RunFailed, match="2 failed rounds in a row"):
        federate(tmp_path, options | {"max-failed-rounds": 2}, spoil=spoil)


@pytest.mark.slow
def test_an_older_reply_cannot_be_played_again(tmp_path: Path) -> None:
    kept = {}

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if kind != "train" or partition != 3:
            return reply
        kept.setdefault("content", reply.content)
        reply.content = kept["content"]
        return reply

    rounds = federate(tmp_path, EIGHT, spoil=spoil).rounds
    refused = [{line["node"]: line["refused"] for line in entry["nodes"]} for entry in rounds]
    assert not refused[1]["3"]
    assert refused[2]["3"] == "it answers a round other than 2"


# ------------------------------------------------------------------------------- before round 1
def test_a_node_without_a_profile_is_left_out(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        return raises(reply) if kind == "query.profile" and partition == 0 else reply

    outcome = federate(tmp_path, EIGHT | {"num-server-rounds": 1}, spoil=spoil)
    assert [line["node"] for line in outcome.rounds[1]["nodes"]] == [str(n) for n in range(1, 8)]


def test_no_profile_at_all_fails_the_run_with_the_reason(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        return raises(reply)

    with pytest.raises(RunFailed, match=r"0 of 8 nodes can take part, min-available-nodes is 1: .*the disk is full"):
        federate(tmp_path, EIGHT, spoil=spoil)
    assert left(tmp_path)[0]["status"] == "failed"


def test_a_node_that_does_not_take_the_base_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        return raises(reply) if (partition, kind) == (4, "query.base") else reply

    own = {4: {"store-path": str(tmp_path / "store")}}
    rounds = federate(tmp_path, EIGHT | {"num-server-rounds": 1}, spoil=spoil, node_configs=own).rounds
    assert [line["node"] for line in rounds[1]["nodes"]] == ["0", "1", "2", "3", "5", "6", "7"]
    assert_says("left out node 4: it did not take the base: .*the disk is full", caplog.text)


def test_of_two_nodes_that_say_one_name_none_takes_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = {1: {"name": "clinic"}, 2: {"name": "clinic"}}
    outcome = federate(tmp_path, EIGHT | {"num-server-rounds": 1}, node_configs=own)
    assert len(outcome.rounds[1]["nodes"]) == 6
    assert_says(
        r"left out node clinic: 2 nodes say that they are 'clinic': \d+ \(no key\), \d+ \(no key\)", caplog.text
    )

"""Who catches up says which weights it stands on, and is not believed where these are others. Shared stores."""

from pathlib import Path

import pytest
import torch
from cold import Run
from flwr.app import ConfigRecord, Message, RecordDict
from in_process import equal

from strategies.exchange.types import OutOfMemory, Refused
from strategies.protocol import journal, wire
from strategies.rounds import validation
from strategies.rounds.validation import PROOF

LATE = 3  # the round in which node 1 is there again


def late(run: Run) -> None:
    """Node 1 misses round 2."""

    def heard(number: int) -> None:
        run.grid.away = {1} if number == LATE - 2 else set()

    run.heard = heard


def lie(reply: Message) -> Message:
    reply.content[PROOF] = ConfigRecord({"fingerprint": "f" * 32})
    return reply


def hide(reply: Message) -> Message:
    del reply.content[PROOF]
    return reply


# ---------------------------------------------------------------------- proofs


@pytest.mark.slow
@pytest.mark.parametrize("change", [lie, hide])
def test_who_stands_on_other_weights_is_dropped_and_sent_all_again(tmp_path: Path, change, monkeypatch) -> None:
    told: list[int] = []

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if PROOF not in reply.content or told:
            return reply
        told.append(partition)
        return change(reply)

    run = Run(tmp_path, spoil=spoil, nodes=3)
    late(run)
    run.go(monkeypatch, LATE + 1)
    assert told == [1]
    refused = {node: line.refused for node, line in run.lines(LATE).items()}
    assert not refused["0"]
    assert not refused["2"]
    assert "after the replay its weights are" in refused["1"]
    assert journal.fingerprint(run.server(LATE)) in refused["1"]
    entry = run.seen[LATE][1].journal[-1]
    assert entry.tensors["numbers"].shape[0] == 2  # the round went on without it
    line = run.lines(LATE + 1)["1"]
    assert line.journal == LATE
    assert not line.refused
    assert equal(run.last_stood()[str(run.store(1))], journal.base_weights_of(run.server(LATE + 1)))


def test_who_cannot_say_for_lack_of_memory_is_not_called_a_liar() -> None:
    question = Message(RecordDict(), dst_node_id=3, message_type="train")
    question.metadata.__dict__["_message_id"] = "question"
    records = RecordDict({OutOfMemory.RECORD: ConfigRecord({"said": "full"})})
    validation.check_proof(Message(records, reply_to=question), "a" * 32)
    with pytest.raises(Refused, match="its weights are '', the server's aaaa"):
        validation.check_proof(Message(RecordDict(), reply_to=question), "a" * 32)


@pytest.mark.slow
def test_who_scores_other_weights_does_not_count(tmp_path: Path, monkeypatch) -> None:
    """Node 1 fails between two evaluations, so in the second it catches up with two entries."""
    run, told = Run(tmp_path, nodes=3), []

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if partition == 1 and 3 <= len(run.grid.of("train")) < 6:
            raise OSError("no disk")
        if kind == "evaluate" and PROOF in reply.content:
            told.append(partition)
            return lie(reply)
        return reply

    run.grid.spoil = spoil
    run.go(monkeypatch, 2, evaluate="nodes")
    assert told == [1]
    counts = [report.evaluated_by_nodes["num-examples"] for report, _ in run.seen]
    assert counts[2] == counts[1] < counts[0]


# ---------------------------------------------------------------------- stores


@pytest.mark.slow
def test_nodes_that_share_a_store_keep_weights_once(tmp_path: Path, monkeypatch) -> None:
    """Two that come after six rounds of one node."""
    run = Run(tmp_path, coordinates=1024, nodes=3, shared=True)

    def heard(number: int) -> None:
        run.grid.away = {1, 2} if number < 6 else set()

    run.grid.away, run.heard = {1, 2}, heard
    run.go(monkeypatch, 8)
    assert {node: line.journal for node, line in run.lines(7).items()} == {"0": 1, "1": -1, "2": -1}
    assert [line.journal for line in run.lines(8).values()] == [1, 1, 1]
    assert not any(line.refused for report, _ in run.seen for line in report.nodes)
    assert len(list(run.store(0).glob("grounds/*"))) == 1
    assert len(list(run.store(0).glob("journals/*"))) == 7
    assert all(equal(weights, journal.base_weights_of(run.server(8))) for _, weights in run.stood[-3:])


@pytest.mark.slow
def test_who_holds_all_and_who_is_sent_the_weights_get_messages_of_their_own(tmp_path: Path, monkeypatch) -> None:
    """Both go on from the same mark: one needs nothing, the other everything."""
    run = Run(tmp_path, coordinates=1024, nodes=3)

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        if (partition, kind) == (1, "evaluate") and len(run.grid.of("train")) == 9:
            raise OSError("no disk")
        return reply

    run.grid.spoil = spoil
    run.go(monkeypatch, 4, evaluate="nodes")
    assert {node: line.journal for node, line in run.lines(4).items()} == {"0": 0, "1": -1, "2": 0}
    assert not any(line.refused for line in run.lines(4).values())
    shares = [wire.unpack(exchange.request) for exchange in run.grid.of("train")[-3:]]
    assert [bool(share.base_weights) for share in shares] == [False, True, False]
    assert len({share.since for share in shares}) == 1
    expected = journal.base_weights_of(run.server(4))
    assert all(torch.equal(tensor, shares[1].base_weights[name]) for name, tensor in expected.items())

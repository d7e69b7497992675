"""Nodes that run out of memory: what that is, that nothing is left of it, and that they go on at a smaller rank."""

from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from in_process import QV, equal, federate, left, retrained, sent, suiting

from client_app.device import within_memory
from strategies.algebra.lowrank import rank_axis
from strategies.exchange.types import OutOfMemory, RunFailed
from strategies.rounds.handshake.ranks import below
from task.models.model import kept_model

CANDIDATES = (2, 4, 8, 16)
IMPOSSIBLE = [lambda: torch.empty(2**47), lambda: torch.nn.Linear(16, 10**13), lambda: bytearray(2**47)]


@pytest.mark.first(1)
@pytest.mark.parametrize("ask", IMPOSSIBLE)
def test_what_memory_says_when_it_runs_out(ask):
    kept_model.cache_clear()
    with pytest.raises(OutOfMemory) as error:
        within_memory("cpu", ask)
    assert error.value.__context__ is None  # whose traceback would hold what had been allocated


def test_other_errors_are_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        within_memory("cpu", lambda: torch.ones(2, 3) @ torch.ones(2, 3))


def test_the_rank_after_running_out_of_memory():
    assert [below(rank) for rank in (64, 9, 2, 1, 0)] == [32, 4, 1, 0, 0]
    assert [below(rank, CANDIDATES) for rank in (16, 5, 4, 2, 1)] == [8, 4, 2, 1, 0]


GREEDY = QV | {"strategy": "greedy", "num-server-rounds": 4, "greedy.fits": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_a_node_out_of_memory_goes_on_at_half_its_rank(tmp_path: Path):
    outcome = federate(tmp_path, GREEDY | {"lora.ranks": "2,1,8"})
    ranks = [[line["rank"] for line in entry["nodes"]] for entry in outcome.rounds[1:]]
    assert ranks == [[2, 1, 8], [2, 1, 4], [2, 1, 2], [2, 1, 2]]
    refused = [[line["refused"][:23] for line in entry["nodes"]] for entry in outcome.rounds[1:]]
    assert refused == [["", "", "out of memory at rank 8"], ["", "", "out of memory at rank 4"], [""] * 3, [""] * 3]
    assert "DefaultCPUAllocator" in outcome.rounds[1]["nodes"][2]["refused"]
    assert outcome.summary["failed-rounds"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_nothing_of_broken_training_is_left(tmp_path: Path):
    """After a node ran out of memory, others in the same process answer as a fresh process would."""
    outcome = federate(tmp_path, GREEDY | {"lora.ranks": "8,2,2", "num-server-rounds": 1})
    for exchange in outcome.grid.of("train")[1:]:
        assert equal(sent(exchange.reply), retrained(outcome, exchange))


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_an_automatic_rank_steps_down_through_the_candidates(tmp_path: Path):
    outcome = federate(
        tmp_path, GREEDY | {"lora.ranks": "auto", "lora.auto-ranks": "1,2,3,7", "simulation.num-supernodes": 1}
    )
    assert [{line["rank"] for line in entry["nodes"]} for entry in outcome.rounds[1:]] == [{7}, {3}, {2}, {2}]
    assert [bool(entry["failed"]) for entry in outcome.rounds[1:]] == [True, True, False, False]


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_at_rank_one_there_is_no_smaller_one(tmp_path: Path):
    with pytest.raises(RunFailed, match="out of memory at rank 1"):
        federate(tmp_path, GREEDY | {"lora.ranks": "1", "greedy.fits": 0, "simulation.num-supernodes": 1})
    _, rounds = left(tmp_path)
    assert {line["rank"] for entry in rounds[1:] for line in entry["nodes"]} == {1}


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["fedavg", "ffa-lora", "rolora", "fedex-lora", "fedsa-lora", "rbla", "flora"])
def test_every_strategy_goes_on_at_a_lower_rank(tmp_path: Path, name: str):
    """One reply says out of memory at rank 4; the next round is good, and equal ranks are equal again."""
    told: list[int] = []

    def run_out(partition: int, kind: str, reply: Message) -> Message:
        if kind == "train" and partition == 1 and not told:
            told.append(partition)
            return Message(RecordDict({OutOfMemory.RECORD: ConfigRecord({"said": "full"})}), reply_to=reply)
        return reply

    options = QV | {"strategy": name, "lora.ranks": "4", "num-server-rounds": 3} | suiting(name)
    outcome = federate(tmp_path, options, spoil=run_out)
    assert outcome.rounds[1]["nodes"][1]["refused"] == "out of memory at rank 4: full"
    lines = [line for entry in outcome.rounds[2:] for line in entry["nodes"]]
    assert not any(line["refused"] for line in lines)
    heterogeneous_ranks = name in ("rbla", "flora")
    assert [line["rank"] for line in lines] == ([4, 2, 4] if heterogeneous_ranks else [2, 2, 2]) * 2
    for factor, tensor in outcome.state().tensors.items():
        if rank_axis(factor) == 1 and not heterogeneous_ranks:
            assert tensor.shape[1] == 4
            assert not tensor[:, 2:].any()  # what nobody trains adds nothing
            assert tensor[:, :2].any()

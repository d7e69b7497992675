"""Tensors that only the server has: checkpointed, never sent, invisible to whatever is not the strategy's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process import QV, federate, resumed
from laws import Plan, scene, variants

import strategies
from strategies.algebra.tensors import raw
from strategies.exchange import compatibility
from strategies.exchange.types import Assignment, State
from strategies.protocol import checkpoint, wire
from strategies.sa_fedlora import WAITING

PLAN = Plan((4, 2, 3), (0, 1, 2), (3, 1, 2), 7)
SECRET = torch.full((64,), 0x5EC2E7, dtype=torch.int64)  # bytes that would be found wherever they went
FEDADAM = '''
"""FedAdam in one file: the moments are the server's."""

from dataclasses import dataclass, replace

import torch

from strategies.algebra.tensors import Tensors, added
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import State
from task.models.model import TunedModel


@dataclass(frozen=True)
class InOneFile(Strategy):
    """FedAvg with two moments."""

    def initial(self, model: TunedModel) -> State:
        state = super().initial(model)
        moments = {f"{m} {n}": torch.zeros_like(t) for m in ("first", "second") for n, t in state.tensors.items()}
        return replace(state, server=moments)

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        server, steps = dict(state.server), {}
        for name, mean in combined.items():
            first = server[f"first {name}"] = 0.9 * server[f"first {name}"] + 0.1 * mean
            second = server[f"second {name}"] = 0.99 * server[f"second {name}"] + 0.01 * mean**2
            steps[name] = 0.01 * first / (second.sqrt() + 0.001)
        return replace(state, tensors=added(state.tensors, steps), server=server)
'''


def of_all() -> list[strategies.Strategy]:
    return [strategy for name in strategies.names() for strategy in variants(name)]


# ---------------------------------------------------------------------- who sees them


@pytest.mark.parametrize("strategy", of_all(), ids=str)
def test_no_strategy_sends_them(strategy):
    """On the real wire, in every round, whatever the strategy keeps on the server already."""
    state = scene(strategy, PLAN).state
    state = replace(state, server=state.server | {"secret": SECRET})
    start = strategy.start_of(state, Assignment(1, 3, 11, 4))
    for sent in (start, state):
        records = wire.pack(sent)
        flat = b"".join(array.data for array in records.array_records["arrays"].values())
        assert bytes(raw(SECRET[:1])) not in flat
        assert wire.unpack(records).server == {}
        assert wire.unpack(records).tensors.keys() == sent.tensors.keys()
    assert start.numbers == replace(start, server={}).numbers
    assert state.numbers == state.without_server().numbers


@pytest.mark.parametrize("strategy", of_all(), ids=str)
def test_a_round_keeps_them(strategy):
    """A strategy may keep its own; those of others come through its methods as they were."""
    drawn = scene(strategy, PLAN)
    begun = strategy.begin(replace(drawn.state, server=drawn.state.server | {"secret": SECRET}), 1, 4)
    after = replace(drawn, state=begun).next()
    assert after.server["secret"] is SECRET
    assert drawn.state.server.keys() | {"secret"} <= after.server.keys()


@pytest.mark.parametrize("wrapper", ["", "median", "trimmed-mean"])
def test_no_rule_of_combination_sees_them(wrapper, monkeypatch):
    seen: list[State] = []
    strategy = strategies.load("fedavg", wrapper)
    owner, own = (type(strategy.wrappers[0]), 1) if wrapper else (type(strategy), 0)
    rule = owner.combine

    def spied(*arguments):
        seen.append(arguments[1 + own])
        return rule(*arguments)

    monkeypatch.setattr(owner, "combine", spied)
    drawn = scene(strategy, PLAN)
    compatibility.combination(strategy)(replace(drawn.state, server={"secret": SECRET}), iter(drawn.updates))
    assert [state.server for state in seen] == [{}]


@pytest.mark.first(1)
@pytest.mark.parametrize("wrappers", ["", "median", "trimmed-mean,quantize"])
def test_moments_in_a_strategy_of_one_file_work_with_any_rule(tmp_path: Path, found: Callable[[Path], None], wrappers):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "in_one_file.py").write_text(FEDADAM)
    found(folder)
    outcome = federate(tmp_path, QV | {"strategy": "in-one-file", "wrappers": wrappers, "num-server-rounds": 2})
    assert outcome.summary["status"] == "completed"
    state = outcome.state()
    assert len(state.server) == 2 * len(state.tensors)
    assert outcome.rounds[-1]["parameters"] == sum(tensor.numel() for tensor in state.tensors.values())
    assert all(state.server[f"second {name}"].any() for name in state.tensors if "lora_B" in name)


# ---------------------------------------------------------------------- on the disk


def as_version_0_1(path: Path) -> None:
    """The state at `path` as version 0.1 wrote it: one table of tensors."""
    state, about = checkpoint.load(path)
    text = json.dumps(about | {checkpoint.POSITION: state.positions[-1]})
    checkpoint._write(path, state.tensors | state.server, text)
    assert checkpoint.SERVER not in checkpoint.about(path)


def test_a_checkpoint_keeps_them_apart(tmp_path):
    state = State({"w": torch.ones(3)}, server={"w": torch.zeros(2), "velocity": SECRET})
    checkpoint.save(tmp_path / "s", state, {"round": 1})
    again, about = checkpoint.load(tmp_path / "s")
    assert about == {"round": 1}
    assert again.tensors.keys() == {"w"}
    assert torch.equal(again.tensors["w"], torch.ones(3))
    assert {name: t.tolist() for name, t in again.server.items()} == {"w": [0, 0], "velocity": SECRET.tolist()}


def test_a_tensor_named_as_the_servers_are_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must not have a name that begins with 'server/': rename it"):
        checkpoint.save(tmp_path / "s", State({"server/w": torch.ones(3)}), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "sa-fedlora", "sa-fedlora.initiating-rounds": 2},
        {"strategy": "ferret", "ferret.seeds": "pool", "ferret.momentum": 0.9, "tuning": "full", "optimizer": "sgd"},
    ],
    ids=["sa-fedlora", "ferret"],
)
def test_checkpoints_of_version_0_1_are_resumed_bit_for_bit(tmp_path, options):
    whole = federate(tmp_path / "whole", QV | options | {"num-server-rounds": 3}).state()
    part = federate(tmp_path / "part", QV | options | {"num-server-rounds": 1})
    before = part.state()
    assert before.server
    as_version_0_1(part.folder / "checkpoints" / checkpoint.LAST)
    assert part.state().server.keys() == before.server.keys()
    again = resumed(part.folder, {"num-server-rounds": 3}).state()
    assert again.positions == whole.positions
    for mine, theirs in ((again.tensors, whole.tensors), (again.server, whole.server)):
        assert {n: bytes(raw(t)) for n, t in mine.items()} == {n: bytes(raw(t)) for n, t in theirs.items()}


def test_version_0_1_has_no_such_tensors_elsewhere(tmp_path):
    """The names by which they are told apart are none that a model's tensors have."""
    outcome = federate(tmp_path, {"tuning": "full"})
    names = outcome.state().tensors.keys()
    as_version_0_1(outcome.folder / "checkpoints" / checkpoint.LAST)
    assert outcome.state().tensors.keys() == names
    assert not any(name.startswith(WAITING) for name in names)

"""Servers that end at any place, as by SIGKILL: what of a run they leave, and whether two runs are the same."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from in_process import QV, InProcessGrid, Outcome, equal, federate, suiting

import client_app

ROUNDS = 3
RUNS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": "fedavg", "fraction-train": 0.5},
    "rbla": {"strategy": "rbla", "lora.ranks": "2,4,8"},
    "sa-fedlora": {"strategy": "sa-fedlora", "lora.ranks": "4,8", "sa-fedlora.heating": 0.0, "num-server-rounds": 4},
    "ferret": suiting("ferret") | {"strategy": "ferret", "ferret.momentum": 0.5},
    "ferret-pool": suiting("ferret") | {"strategy": "ferret", "ferret.momentum": 0.5, "ferret.seeds": "pool"},
    "fedex-lora": {"strategy": "fedex-lora"},
    "fedsvd": {"strategy": "fedsvd"},
    "pissa": {"lora.init": "pissa"},
    "lora-a2": {"strategy": "lora-a2"},
    "lora-sb": {"tuning": "lora-sb"},
    "slora": {"strategy": "slora", "slora.sparse-rounds": 1},
    "flora": {"strategy": "flora", "lora.ranks": "2,8"},
    "lora-fair": {"strategy": "lora-fair"},
    "fedrot-lora": {"strategy": "fedrot-lora"},
    "scaffold": {"strategy": "scaffold", "optimizer": "sgd", "learning-rate": 0.05, "fraction-train": 0.5},
    "raflora": {"strategy": "raflora", "lora.ranks": "2,4,8"},
    "rbla-shrunk": {"strategy": "rbla-shrunk", "lora.ranks": "2,4,8"},
    "fedsa-lora": {"strategy": "fedsa-lora", "evaluate": "nodes"},
    "hetlora": {
        "strategy": "hetlora",
        "hetlora.gamma": 0.5,
        "hetlora.penalty": 10.0,
        "learning-rate": 0.02,
        "local-steps": 3,
    },  # nodes prune in round 2
    "quantize": {"wrappers": "quantize", "quantize.bits": 4},
    "top-k": {"strategy": "rbla", "lora.ranks": "2,8", "wrappers": "top-k,half"},
    "auto": {"strategy": "rbla", "lora.ranks": "auto", "lora.auto-ranks": "2,4"},
}


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL; only files are left."""


class Fragile(InProcessGrid):
    """Ends the server after so many looks for nodes, or replies to training. Node ids are others each time."""

    numbers = itertools.count(100)

    def __init__(self, looks: int = -1, trained: int = -1) -> None:
        super().__init__(client_app.app, 3, ids=next(self.numbers))
        self.looks, self.left = looks, trained
        self.spoil = self._spoil

    def get_node_ids(self) -> list[int]:
        self.looks -= 1
        if self.looks == -1:
            raise Killed
        return super().get_node_ids()

    def _spoil(self, partition: int, kind: str, reply: Message) -> Message:
        self.left -= kind == "train"
        if self.left == 0:
            raise Killed
        return reply


OPENING = 2  # looks for nodes before the first round


def options(name: str) -> dict[str, Any]:
    return QV | {"num-server-rounds": ROUNDS} | RUNS[name]


def stopped(folder: Path, name: str = "fedavg") -> Path:
    """The folder of a run that ended after round 1."""
    with pytest.raises(Killed):
        federate(folder, options(name), Fragile(looks=OPENING + 1))
    return (folder / "latest").resolve()


QUALITY = ("round", "accuracy", "loss", "chosen-by", "train-loss", "aggregation-error", "failed", "parameters")


def assert_same_run(one: Outcome, other: Outcome) -> None:
    """State, best state, journal, what was measured, who trained what, to the last bit."""
    for which in ("last", "best"):
        assert equal(one.state(which).tensors, other.state(which).tensors)
        assert one.state(which).positions == other.state(which).positions
    for ours, theirs in zip(one.rounds, other.rounds, strict=True):
        differing = {key: (ours.get(key), theirs.get(key)) for key in QUALITY if ours.get(key) != theirs.get(key)}
        assert not differing, f"round {ours['round']}: {differing}"
        assert [(n["node"], n["rank"], n["refused"]) for n in ours["nodes"]] == [
            (n["node"], n["rank"], n["refused"]) for n in theirs["nodes"]
        ]
    same = ("status", "base", "final", "best", "best-round", "rounds", "ranks", "failed-rounds", "parameters_up")
    assert [one.summary[key] for key in same] == [other.summary[key] for key in same]

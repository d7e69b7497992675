"""Runs of ferret in which every message finds a process that has done nothing before: a node has its store alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from in_process import SMALL, InProcessGrid, Spoil, watched

import client_app
import strategies
from client_app.store import ClientStore
from strategies.algebra.tensors import Tensors
from strategies.exchange.callback import NodeReport, RoundReport
from strategies.exchange.types import State
from strategies.protocol import journal
from strategies.rounds.handshake.resolve import resolve
from task.config import TaskConfig
from task.models.finding import server_base
from task.models.model import TunedModel, kept_model, pristine
from task.storage.store import server_store

BIAS = {"tuning": "bias"}  # 3,082 numbers
TASK = BIAS | {key: value for key, value in SMALL.items() if key.startswith("data.")}


@dataclass
class Run:
    """A run of ferret that is watched: what happened, and what every node stood on at every message."""

    folder: Path
    coordinates: int = 128
    momentum: float = 0.0
    spoil: Spoil | None = None
    nodes: int = 4
    shared: bool = False  # do all nodes have one store?
    heard: Callable[[int], object] = int  # told the number of every round that is over
    seen: list[tuple[RoundReport, State]] = field(default_factory=list, repr=False)
    stood: list[tuple[str, Tensors]] = field(default_factory=list, repr=False)  # store, weights

    def __post_init__(self) -> None:
        own = {n: {"store-path": str(self.store(n))} for n in range(self.nodes)}
        self.grid = InProcessGrid(client_app.app, self.nodes, own, self.spoil)
        options: dict[str, Any] = {"coordinates": self.coordinates, "block": 256, "momentum": self.momentum}
        self.strategy = strategies.load("ferret", **options)

    def store(self, partition: int) -> Path:
        return self.folder / ("store" if self.shared else f"store-{partition}")

    def go(self, monkeypatch: pytest.MonkeyPatch, rounds: int, **task: Any) -> None:
        install = ClientStore.installed

        def cold(memory: ClientStore, strategy: Any, model: Any, start: State) -> Any:
            found = install(memory, strategy, pristine(model), start)
            self.stood.append((str(memory.store.root), journal.base_weights_of(found)))
            return found

        monkeypatch.setattr(ClientStore, "installed", cold)
        self.seen = watched(self.strategy, BIAS | task, rounds, self.grid, self.heard)

    def lines(self, round_: int) -> dict[str, NodeReport]:
        return {line.node: line for line in self.seen[round_][0].nodes}

    def server(self, round_: int) -> TunedModel:
        """The server's own model before a round, in a process that has done nothing else."""
        kept_model.cache_clear()
        base = server_base(TaskConfig().model, server_store())
        task = resolve(TaskConfig.read(TASK), server_store(), self.nodes)
        return journal.held(self.strategy, base, task, self.seen[round_ - 1][1])

    def last_stood(self) -> dict[str, Tensors]:
        """Weights of every store's last message."""
        return dict(self.stood)

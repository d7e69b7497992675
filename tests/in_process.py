"""The in-process grid with ears and hands: tests hear all messages, spoil replies, take nodes away and bring them back.

Simulated nodes are as Ray's simulation makes them: random ids, `partition-id` and `num-partitions`.
`federate` runs a whole federation on such a grid, as the ServerApp does, and gives what it left.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

import client_app
import server_app.main
import strategies
from client_app.local import Local
from client_app.training import trained
from server_app.config import RunConfig
from server_app.resuming import continued
from strategies.exchange.callback import Callback, RoundReport
from strategies.exchange.federation import Federation
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import State, Tensors
from strategies.protocol import checkpoint, wire
from strategies.rounds.handshake.resolve import resolve
from task.config import TaskConfig
from task.models.base import Base
from task.models.finding import server_base
from task.models.model import kept_model
from task.schema import flatten
from task.storage.store import server_store
from thistledown.simulation import grid

SERVER = 1
Spoil = Callable[[int, str, Message], Message | None]

# The embedded default, cut down to about a second.
SMALL: dict[str, Any] = {
    "num-server-rounds": 1,
    "simulation.num-supernodes": 3,
    "data.train-rows": 90,
    "data.validation-rows": 20,
    "data.test-rows": 20,
    "local-steps": 1,
    "batch-size": 8,
}

# On top of it: adapters on queries and values, and two steps.
QV = {"lora.targets": "q_proj,v_proj", "local-steps": 2}


@dataclass(frozen=True)
class Exchange:
    """A message to a node and what came back: records, or None for an error or no reply."""

    partition: int
    kind: str
    request: RecordDict
    reply: RecordDict | None


class InProcessGrid(grid.InProcessGrid):
    """`spoil` may change a reply (or raise) before it is delivered: (partition, message type, reply) -> reply.

    `exchanges` keeps all that went over the wire. Nodes are simulated ones, unless they are `deployed`.
    """

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int,
        node_configs: dict[int, dict[str, Any]] | None = None,
        spoil: Spoil | None = None,
        ids: int = 0,
        deployed: bool = False,
    ) -> None:
        super().__init__(app, num_nodes, node_configs, ids)
        self.spoil, self.deployed = spoil, deployed
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 7, SERVER
        self.lingering: set[int] = set()
        self.away: set[int] = set()  # partitions that are not connected
        self.exchanges: list[Exchange] = []

    @property
    def log(self) -> list[tuple[int, str]]:
        """(partition, message type) in the order sent."""
        return [(exchange.partition, exchange.kind) for exchange in self.exchanges]

    def of(self, kind: str) -> list[Exchange]:
        """What was exchanged in messages of one type."""
        return [exchange for exchange in self.exchanges if exchange.kind == kind]

    def restart(self, partition: int, *, lingers: bool = False) -> None:
        """The node comes back as Flower lets it: under a new id, its state forgotten. The old id may linger among
        those that are there, as it does until its heartbeat is missed; nobody answers under it."""
        old = next(node_id for node_id in self.contexts if self.partitions[node_id] == partition)
        new = self.ids.randrange(10**7, 10**8)
        self.partitions[new] = partition
        self.lingering = {old} if lingers else set()
        config = self.contexts.pop(old).node_config
        self.contexts[new] = Context(run_id=7, node_id=new, node_config=config, state=RecordDict(), run_config={})

    def get_node_ids(self) -> list[int]:
        there = [node_id for node_id in super().get_node_ids() if self.partitions[node_id] not in self.away]
        return [*self.lingering, *there]

    def delivered(self, message: Message) -> Message | None:
        reply = super().delivered(message)
        content = reply.content if reply is not None and reply.has_content() else None
        partition = self.partitions[message.metadata.dst_node_id]
        self.exchanges.append(Exchange(partition, message.metadata.message_type, message.content, content))
        return reply

    def answer(self, message: Message, context: Context) -> Message | None:
        reply: Message | None = self.app(message, context) if self.deployed else super().answer(message, context)
        if self.spoil is None:
            return reply
        return self.spoil(self.partitions[context.node_id], message.metadata.message_type, reply)


def sent(record: Any) -> Tensors:
    return wire.unpack(record).tensors


def raw_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def equal(one: Tensors, other: Tensors) -> bool:
    """Same names, same bits."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def retold(reply: Message, change: Callable[[Tensors], Tensors]) -> Message:
    """The same reply with other tensors in it."""
    state = State(change(wire.unpack(reply.content).tensors))
    for name, record in wire.pack(state).items():
        reply.content[name] = record
    return reply


@dataclass(frozen=True)
class Outcome:
    """What a federation left: the grid with all messages, the parsed config, the results folder."""

    grid: InProcessGrid
    run: RunConfig
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return dict(json.loads((self.folder / "summary.json").read_text()))

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, round 0 first."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def state(self, which: str = "last") -> State:
        """The `last` or the `best` checkpoint."""
        return checkpoint.load(self.folder / "checkpoints" / f"{which}.safetensors")[0]

    @property
    def base(self) -> Base:
        """The server's base."""
        return server_base(self.run.task.model, server_store())

    @property
    def task(self) -> TaskConfig:
        """The settings with label names, as the nodes got them."""
        return resolve(self.run.task, server_store(), len(self.grid.contexts))


def federate(
    folder: Path, options: dict[str, Any] | None = None, grid: InProcessGrid | None = None, **nodes: Any
) -> Outcome:
    """A federation of SMALL with `options`; `nodes` are arguments of the grid. Results go to `folder`.

    Raises what the ServerApp would; `left(folder)` then says what is there.
    """
    run = RunConfig.read({**SMALL, **(options or {}), "output-dir": str(folder)})
    grid = grid or InProcessGrid(client_app.app, run.server.simulation.num_supernodes, **nodes)
    return Outcome(grid, run, server_app.main.federate(grid, run))


def resumed(folder: Path, options: dict[str, Any] | None = None, grid: InProcessGrid | None = None) -> Outcome:
    """Go on with the run in a results folder, as another process would."""
    kept_model.cache_clear()
    run = RunConfig.read(continued({"resume": str(folder), **(options or {})}))
    grid = grid or InProcessGrid(client_app.app, run.server.simulation.num_supernodes, ids=1)
    return Outcome(grid, run, server_app.main.federate(grid, run))


class Watcher(Callback):
    """Keeps what it is told of every round, and tells `heard` its number."""

    essential = True  # what a test raises ends the run

    def __init__(self, heard: Callable[[int], object] = int) -> None:
        self.seen: list[tuple[RoundReport, State]] = []
        self._heard = heard

    def on_round(self, report: RoundReport, state: State) -> None:
        self.seen.append((report, state))
        self._heard(report.number)


def watched(
    strategy: Strategy, options: dict[str, Any], rounds: int, grid: InProcessGrid, heard: Callable[[int], object] = int
) -> list[tuple[RoundReport, State]]:
    """Report and state of every round, 0 first, of a strategy that is started on `grid` by itself.

    `options` are the task's; `heard` is told the number of every round that is over.
    """
    task = RunConfig.read({**SMALL, **options, "strategy": strategy.name}).task
    watcher = Watcher(heard)
    settings = ConfigRecord(dict(flatten(task, changed_only=True)))
    strategy.start(grid, num_rounds=rounds, train_config=settings, federation=Federation(callbacks=(watcher,)))
    return watcher.seen


def spoiled(reply: Message) -> Message:
    """The reply with NaN in every tensor, which the door refuses."""
    return retold(reply, lambda tensors: {name: torch.full_like(t, float("nan")) for name, t in tensors.items()})


def suiting(strategy: str) -> dict[str, Any]:
    """What a strategy needs beside the defaults, and for models of a few hundred numbers."""
    seeded: dict[str, dict[str, Any]] = {
        "ferret": {"tuning": "bias", "ferret.coordinates": 640, "ferret.block": 256},
        "fedkseed": {"tuning": "bias", "fedkseed.directions": 64, "fedkseed.block": 4096, "optimizer": "sgd"},
        "scaffold": {"optimizer": "sgd"},
    }
    personalized = {"evaluate": "nodes"} if strategies.strategy_class(strategy).personalized else {}
    return personalized | seeded.get(strategy, {})


def left(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and rounds of the newest run in `folder`, however it ended."""
    place = folder / "latest"
    lines = place / "metrics.jsonl"
    rounds = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return json.loads((place / "summary.json").read_text()), rounds


def retrained(outcome: Outcome, exchange: Exchange) -> Tensors:
    """The update that a node without a past makes of the same message, in a process that has done nothing before."""
    kept_model.cache_clear()
    reply = trained(local(outcome.grid, exchange), RecordDict(dict(exchange.request)))  # which training empties
    return wire.unpack(reply).tensors


def local(grid: InProcessGrid, exchange: Exchange) -> Local:
    """The node that a message went to."""
    context = next(c for node, c in grid.contexts.items() if grid.partitions[node] == exchange.partition)
    return Local.of(context, exchange.request.config_records["instructions"])

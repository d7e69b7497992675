"""Replay a run in this process from its results folder: the same settings, the same nodes connected in every round, the
same replies dropped.

What of a node enters the bits is its node config, its name included, and when it was connected under which id: a node
that comes back under a new id is greeted anew. All of it is in the folder but the node configs, which belong to the
nodes. Two things are not known of a node without a reply: whether it trained, which matters if it keeps a client state,
and what it would have answered to a question of the handshake.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict

import client_app
import server_app.main
from server_app.config import RunConfig
from server_app.results.lines import line_of
from server_app.results.measure import Measure, measure_of
from server_app.resuming import flat
from strategies.exchange.callback import Callback, RoundReport
from strategies.exchange.types import State
from strategies.protocol import checkpoint
from strategies.rounds.defence.examination import HARM
from task.models.model import kept_model
from thistledown.simulation import grid

ABSENT = ("no reply before the deadline", *(f"node error {code}:" for code in (3, 4, 5, 8)))
OTHER = ("seconds", "connected", "bytes_up", "bytes_down", "bytes_base")


class Differs(AssertionError):
    """A replay that does something else than the record says."""


@dataclass(frozen=True)
class Record:
    """What the results folder of a run says: its settings, its rounds, and its last state."""

    settings: Mapping[str, Any]
    lines: tuple[dict[str, Any], ...]
    state: State

    @classmethod
    def of(cls, folder: Path) -> "Record":
        """Read the folder of a run that has ended."""
        lines = tuple(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        settings = flat(tomllib.loads((folder / "config.toml").read_text()))
        return cls(settings, lines, checkpoint.load(folder / "checkpoints" / checkpoint.LAST)[0])

    def connected(self, round: int) -> dict[str, int]:
        """Return the ids of the nodes that were connected in a round, by name."""
        known = [line["connected"] for line in self.lines[: round + 1] if "connected" in line]
        return dict(known[-1])

    def refused(self, kind: str, round: int, node: str) -> str:
        """Return why a node's reply did not count, empty if it did."""
        asked = self.lines[round]["nodes" if kind == "train" else "evaluations"]
        return str(next((line["refused"] for line in asked if line["node"] == node), ""))

    def changed(self, round: int, **values: Any) -> "Record":
        """Return a record that says something else of a round."""
        lines = [line | values if line["round"] == round else line for line in self.lines]
        return replace(self, lines=tuple(lines))


class RecordedGrid(grid.InProcessGrid):
    """A grid whose nodes are connected, and whose replies get lost, as a record says."""

    def __init__(self, record: Record, node_configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(client_app.app, 0)
        self.record, self.round = record, 0
        self.names = {i: name for n in range(len(record.lines)) for name, i in record.connected(n).items()}
        for node_id, name in self.names.items():
            own = {"name": name, **node_configs[name]}
            self.contexts[node_id] = Context(grid.RUN, node_id, own, RecordDict(), {})

    def get_node_ids(self) -> list[int]:
        return list(self.record.connected(self.round).values())

    def answer(self, message: Message, context: Context) -> Message | None:
        node, about = self.names[context.node_id], message.metadata
        asked = about.message_type in ("train", "evaluate")
        why = self.record.refused(about.message_type, int(about.group_id), node) if asked else ""
        if why.startswith(ABSENT):  # whether it trained is not known
            return Message(Error(code=grid.UNAVAILABLE, reason=why), reply_to=message)
        reply = super().answer(message, context)
        if why and not why.startswith(HARM):  # which the server finds again by itself
            return Message(Error(code=grid.FAILED, reason=why), reply_to=message)
        return reply


@dataclass
class Follower(Callback):
    """Compares every round with the record, if it is to, and tells the grid which one comes next."""

    grid: RecordedGrid
    measure: Measure
    compares: bool
    essential = True

    def on_round(self, report: RoundReport, state: State) -> None:
        ours, theirs = (facts(line) for line in (line_of(report, self.measure), self.grid.record.lines[report.number]))
        for what, value in theirs.items():
            if self.compares and ours[what] != value:
                raise Differs(f"round {report.number}: {what}: {ours[what]} in the replay, {value} in the record")

    def on_checkpoint(self, report: RoundReport, state: State) -> None:
        self.grid.round = min(report.number + 1, len(self.grid.record.lines) - 1)


def facts(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a replay has to repeat of a line of metrics.jsonl: scores, errors, and of every node its rank, its
    metrics and whether its reply counted. Neither bytes, as a resumed run is greeted twice, nor seconds."""
    found = {key: value for key, value in line.items() if key not in OTHER} | {"failed": bool(line["failed"])}
    return found | {what: [_of_node(node) for node in line.get(what, ())] for what in ("nodes", "evaluations")}


def _of_node(line: Mapping[str, Any]) -> tuple[Any, ...]:
    metrics = {key: value for key, value in line["metrics"].items() if key != "seconds"}
    return line["node"], line["rank"], bool(line["refused"]), metrics


def bits(state: State) -> dict[str, torch.Tensor]:
    """Return the tensors of a state, the server's own among them."""
    return {**state.tensors, **{f"server: {name}": tensor for name, tensor in state.server.items()}}


def replay(record: Record, node_configs: Mapping[str, Mapping[str, Any]], folder: Path, *, follow: bool = True) -> None:
    """Replay a run, and raise Differs unless every round and the last state are the same, bit for bit.

    `node_configs` are the nodes', by name. Results go to `folder`. Without `follow` the last state alone is compared.
    """
    kept_model.cache_clear()
    own = {"output-dir": str(folder), "min-available-nodes": len(record.connected(0)), "trackers": ""}
    run = RunConfig.read({**record.settings, **own})
    there = RecordedGrid(record, node_configs)
    with grid.identity():
        left = server_app.main.federate(there, run, [Follower(there, measure_of(run.task), follow)])
    state = checkpoint.load(left / "checkpoints" / checkpoint.LAST)[0]
    wanted, found = bits(record.state), bits(state)
    if wanted.keys() != found.keys() or record.state.positions[-1] != state.positions[-1]:
        raise Differs("the last state has other tensors or another journal")
    if differing := [name for name, tensor in wanted.items() if not tensor.equal(found[name])]:
        raise Differs(f"{len(differing)} tensors have other bits, the first is '{differing[0]}'")

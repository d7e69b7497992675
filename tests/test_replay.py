"""A results folder says enough of a run for it to be replayed bit for bit, whatever happened to its nodes."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from fragile import Killed
from in_process import InProcessGrid, federate, resumed, spoiled
from replay import Differs, Record, replay

import client_app
from strategies.rounds.defence import influence
from strategies.rounds.defence.examination import HARM
from thistledown.simulation.grid import UNAVAILABLE

SETTINGS: dict[str, Any] = {
    "strategy": "rbla",
    "lora.ranks": "2,4,8",
    "lora.targets": "q_proj,v_proj",
    "num-server-rounds": 5,
    "evaluate": "both",
    "evaluate-every": 5,
}
NODES = {str(n): {"partition-id": n, "num-partitions": 3} for n in range(3)}
SILENT, BROKEN, AWAY = 0, 1, 2
DIES = 4  # the round in which the first server dies


class Misfortunes(InProcessGrid):
    """A node does not answer in round 1 and comes back under another id, one answers nonsense in round 2, one is away
    in rounds 3 and 4. A server that is `mortal` dies in round 4."""

    def __init__(self, ids: int = 0, *, mortal: bool = False) -> None:
        super().__init__(client_app.app, len(NODES), ids=ids)
        self.mortal = mortal

    def delivered(self, message: Message) -> Message | None:
        kind, round = message.metadata.message_type, int(message.metadata.group_id)
        if kind != "train":
            return super().delivered(message)
        if self.mortal and round == DIES:
            raise Killed
        self.away = {AWAY} if round in (2, 3) else set()  # from the next round on
        match self.partitions[message.metadata.dst_node_id], round:
            case int(node), 1 if node == SILENT:
                self.restart(node)
                return Message(Error(code=UNAVAILABLE, reason="on purpose"), reply_to=message)
            case int(node), 2 if node == BROKEN:
                reply = super().delivered(message)
                return reply and spoiled(reply)
        return super().delivered(message)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return Record.of(federate(tmp_path_factory.mktemp("run"), SETTINGS, Misfortunes()).folder)


def test_a_run_with_misfortunes_is_replayed(record: Record, tmp_path: Path) -> None:
    good = [[node["node"] for node in line["nodes"] if not node["refused"]] for line in record.lines]
    assert good == [[], ["1", "2"], ["0", "2"], ["0", "1"], ["0", "1"], ["0", "1", "2"]]
    assert record.connected(1)["0"] != record.connected(2)["0"]
    replay(record, NODES, tmp_path)


def other_seed(record: Record) -> Record:
    return Record({**record.settings, "seed": record.settings["seed"] + 1}, record.lines, record.state)


def less_connected(record: Record) -> Record:
    there = {name: node for name, node in record.connected(5).items() if name != "2"}
    return record.changed(5, connected=there, nodes=record.lines[5]["nodes"][:2])


def one_drop_more(record: Record) -> Record:
    first, *others = record.lines[5]["nodes"]
    return record.changed(5, nodes=[{**first, "refused": "no reason"}, *others])


def one_drop_less(record: Record) -> Record:
    lines = [{**node, "refused": ""} for node in record.lines[2]["nodes"]]
    return record.changed(2, nodes=lines)


@pytest.mark.first(1)
@pytest.mark.parametrize("change", [other_seed, less_connected, one_drop_more, one_drop_less])
def test_another_record_is_not_replayed(record: Record, change: Any, tmp_path: Path) -> None:
    """Neither its rounds nor, if nobody compares these, its state."""
    with pytest.raises(Differs, match="round"):
        replay(change(record), NODES, tmp_path / "rounds")
    with pytest.raises(Differs, match="tensors have other bits"):
        replay(change(record), NODES, tmp_path / "state", follow=False)


@pytest.mark.usefixtures("dead_servers_write_no_summary")
def test_a_run_whose_server_died_is_replayed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        federate(tmp_path / "run", SETTINGS, Misfortunes(mortal=True))
    outcome = resumed(tmp_path / "run" / "latest", None, Misfortunes(ids=1))
    assert outcome.summary["resumed"] == [DIES - 1]
    record = Record.of(outcome.folder)
    assert not record.connected(DIES - 1).items() & record.connected(DIES).items()
    replay(record, NODES, tmp_path / "replay")


@pytest.mark.judged
def test_a_reply_that_was_left_out_is_left_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrived, and the server judges the next ones by what it has seen of this one."""
    for name in ("SHARE", "AT_ONCE"):
        monkeypatch.setattr(influence, name, -9.0)  # whoever does harm in a round is left out
    options = {"data.validation-rows": 60, "learning-rate": 0.05, "num-server-rounds": 3, "evaluate-every": 1}
    record = Record.of(federate(tmp_path / "run", SETTINGS | options, InProcessGrid(client_app.app, len(NODES))).folder)
    refused = [node["refused"] for line in record.lines for node in line["nodes"]]
    assert any(why.startswith(HARM) for why in refused)
    replay(record, NODES, tmp_path / "replay")

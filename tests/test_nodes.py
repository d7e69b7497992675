"""Nodes as they are: bases in stores of their own, data of their own, nodes that go and come."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import InProcessGrid, equal, federate

import client_app
from task.data.sources.digits import digits_part


# ------------------------------------------------------------------------------- base and data of nodes
@pytest.mark.slow
def test_the_base_is_offered_once_to_every_store(tmp_path: Path) -> None:
    stores = {0: tmp_path / "a", 1: tmp_path / "a", 2: tmp_path / "b"}
    own = {partition: {"store-path": str(path)} for partition, path in stores.items()}
    first = federate(tmp_path, {"tuning": "head"}, node_configs=own)
    offered = [stores[partition] for partition, kind in first.grid.log if kind == "query.base"]
    assert sorted(offered) == [tmp_path / "a", tmp_path / "b"]
    assert first.summary["bytes_base"] > 2 * 4 * 136_138
    second = federate(tmp_path, {"tuning": "head"}, node_configs=own)
    assert "query.base" not in [kind for _, kind in second.grid.log]
    assert second.summary["bytes_base"] == 0
    assert equal(first.state().tensors, second.state().tensors)


def test_without_an_offer_a_lacking_node_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = {2: {"store-path": str(tmp_path / "empty")}}
    federate(tmp_path, {"tuning": "head"})  # the others have it
    rounds = federate(tmp_path, {"model.offer": False, "tuning": "head"}, node_configs=own).rounds
    assert [line["node"] for line in rounds[1]["nodes"]] == ["0", "1"]
    assert re.search(r"left out node 2: it lacks the base 'embedded' .*model\.offer is false", caplog.text)


def test_without_an_offer_and_without_a_base_there_is_no_run(tmp_path: Path) -> None:
    own = {partition: {"store-path": str(tmp_path / "empty")} for partition in range(3)}
    with pytest.raises(RuntimeError, match=r"0 of 3 nodes can take part.*lacks the base.*model\.offer is false"):
        federate(tmp_path, {"model.offer": False, "tuning": "head"}, node_configs=own)


@pytest.mark.first(1)
@pytest.mark.parametrize("key", ["data-path", "dataset-path"])
def test_a_node_trains_on_its_own_file(tmp_path: Path, key: str) -> None:
    images, labels = digits_part("public")
    np.savez(tmp_path / "own.npz", images=images[:37], labels=labels[:37])
    own = {1: {key: str(tmp_path / "own.npz"), "name": "hospital"}}
    outcome = federate(tmp_path, {"tuning": "head"}, node_configs=own)
    lines = {line["node"]: line for line in outcome.rounds[1]["nodes"]}
    assert lines.keys() == {"0", "2", "hospital"}
    assert lines["hospital"]["metrics"]["num-examples"] == 37
    assert not lines["hospital"]["refused"]


def test_no_node_needs_a_partition(tmp_path: Path) -> None:
    images, labels = digits_part("public")
    own: dict[int, dict[str, Any]] = {}
    for partition in range(2):
        np.savez(tmp_path / f"{partition}.npz", images=images[partition::9], labels=labels[partition::9])
        own[partition] = {"data-path": str(tmp_path / f"{partition}.npz"), "name": f"site {partition}"}
    grid = InProcessGrid(client_app.app, 2, own)
    for context in grid.contexts.values():
        del context.node_config["partition-id"], context.node_config["num-partitions"]
    outcome = federate(tmp_path, {"tuning": "head", "data.partitioner": "none"}, grid)
    assert outcome.summary["ranks"].keys() == {"site 0", "site 1"}
    assert not any(line["refused"] for line in outcome.rounds[1]["nodes"])


# ------------------------------------------------------------------------------- nodes that go and come
class Restless(InProcessGrid):
    """Node 0 restarts after the first round; its old id lingers for as many rounds as said."""

    rolls, lingers = 0, 0

    def get_node_ids(self) -> list[int]:
        self.rolls += 1
        if self.rolls == FIRST_ROLL + 1:
            self.restart(0, lingers=bool(self.lingers))
        if self.rolls == FIRST_ROLL + 1 + self.lingers:
            self.lingering.clear()
        return super().get_node_ids()


FIRST_ROLL = 3  # twice before round 1, then once a round


@pytest.mark.slow
def test_a_node_that_restarts_under_a_new_id_goes_on(tmp_path: Path) -> None:
    options = {"num-server-rounds": 2, "tuning": "head"}
    outcome = federate(tmp_path, options, Restless(client_app.app, 3))
    assert [line["node"] for line in outcome.rounds[2]["nodes"]] == ["0", "1", "2"]
    assert equal(outcome.state().tensors, federate(tmp_path, options).state().tensors)


@pytest.mark.slow
def test_a_restarted_node_waits_until_its_old_id_is_gone(tmp_path: Path) -> None:
    """Flower lists the old id until its heartbeat is missed; until then there are two nodes of one name."""
    grid = Restless(client_app.app, 3)
    grid.lingers = 1
    rounds = federate(tmp_path, {"num-server-rounds": 3, "tuning": "head"}, grid).rounds
    good = [[line["node"] for line in entry["nodes"] if not line["refused"]] for entry in rounds[1:]]
    assert good == [["0", "1", "2"], ["1", "2"], ["0", "1", "2"]]

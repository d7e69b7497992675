"""A deployed run that loses a node is replayed in this process with the same bits."""

from pathlib import Path
from typing import Any

import pytest
from replay import Record, replay

from benchmarks.deployed import Deployment
from benchmarks.shares import Shares
from deployment.three import NODES, deployed, node_config

pytestmark = pytest.mark.flower

LOST = NODES[2]
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 3,
    "local-steps": 2,
    "batch-size": 8,
    "round-timeout": 20.0,
    "min-success-fraction": 0.3,
    "data.validation-rows": 50,
    "data.test-rows": 50,
}


def test_a_run_that_loses_a_node(shares: Shares, tmp_path: Path) -> None:
    """Whichever replies are lost on this machine: the record says so, and the replay loses the same."""
    with Deployment(NODES, apart=False) as deployment:
        for name in NODES:
            deployment.node(name, node_config(shares, name), executor="thistledown-superexec")
        deployment.online(len(NODES))
        run = deployment.submit(deployed(shares) | SETTINGS)
        run.until_round(1)
        deployment.nodes[LOST].kill()
        assert run.end() == "finished:completed", run.log
        record, refused = Record.of(run.results), run.refused
    assert any(LOST in lost for lost in refused), refused
    replay(record, {name: node_config(shares, name) for name in NODES}, tmp_path)

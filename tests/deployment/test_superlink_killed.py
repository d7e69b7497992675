"""The SuperLink dies in the middle of a run and is started again: what each isolation mode makes of it."""

import time
from pathlib import Path

import pytest
from replay import Record, replay

from benchmarks.deployed import Deployment
from benchmarks.shares import Shares
from deployment.three import NODES, deployed, node_config

pytestmark = pytest.mark.flower

AWAY = 5.0  # seconds that the SuperLink is gone


@pytest.mark.parametrize("isolation", ["process", "subprocess"])
def test_it_comes_back_and_the_result_is_the_same(apart: bool, shares: Shares, isolation: str, tmp_path: Path) -> None:
    with Deployment(NODES, apart, isolation) as deployment:
        for name in NODES:
            deployment.node(name, node_config(shares, name), executor="thistledown-superexec")
        deployment.online(len(NODES))
        run = deployment.submit(deployed(shares))
        run.until_round(1)
        before = run.results
        deployment.superlink.crash()
        time.sleep(AWAY)
        deployment.start_superlink()
        if isolation == "subprocess":
            assert run.until_finished().startswith("finished:failed")
            deployment.online(len(NODES))
            run = deployment.submit(deployed(shares) | {"resume": str(before)})
        assert run.end() == "finished:completed", run.log
        assert run.results == before
        record = Record.of(run.results)
    assert [[(node["node"], node["refused"]) for node in line["nodes"]] for line in record.lines[1:]] == [
        [(name, "") for name in NODES]
    ] * 2
    replay(record, {name: node_config(shares, name) for name in NODES}, tmp_path)

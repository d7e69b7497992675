"""The SuperLink dies in the middle of a run and is started again: what each isolation mode makes of it."""

import time
from pathlib import Path
from typing import Any

import pytest
from in_process import federate
from three import NODES, deployed, node_config

from benchmarks.deployed import Deployment
from benchmarks.shares import Shares
from strategies.algebra.tensors import Tensors
from strategies.protocol import checkpoint
from strategies.protocol.checkpoint import LAST

AWAY = 5.0  # seconds that the SuperLink is gone
WHOLE = {"data.train-rows": 0, "data.validation-rows": 0, "data.test-rows": 0, "local-steps": 0, "batch-size": 16}


def undisturbed(shares: Shares, folder: Path) -> Tensors:
    """What the same nodes end with when nothing happens, in this process."""
    own: dict[int, dict[str, Any]] = {number: {"name": n, **node_config(shares, n)} for number, n in enumerate(NODES)}
    return federate(folder, deployed(shares) | WHOLE, node_configs=own).state().tensors


def differ(found: Path, wanted: Tensors) -> list[str]:
    """Names of tensors that are not the same, bit for bit."""
    tensors = checkpoint.load(found / "checkpoints" / LAST)[0].tensors
    assert tensors.keys() == wanted.keys()
    return [name for name, tensor in wanted.items() if not tensor.equal(tensors[name])]


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
        assert not differ(run.results, undisturbed(shares, tmp_path))

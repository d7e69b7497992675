"""A machine that crashes, one that is too slow and one that computes nonsense: the run goes on without them, takes them
back, and ends with the bits of a replay in which the same replies are lost. So does a run that loses a node for good.

Faults come from outside: SIGKILL, SIGSTOP, and a `sitecustomize` on one node's PYTHONPATH that spoils what it sends
while a file is there. Nothing of it is in the app.
"""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replay import Record, replay

from benchmarks.deployed import Deployment, Run
from benchmarks.shares import Shares
from deployment.three import NODES, SPLIT, deployed, node_config

pytestmark = pytest.mark.flower

ROUNDS = 10
DEADLINE = 45.0  # seconds: before the 60 after which Flower itself gives up a process that says nothing
SETTINGS = {"num-server-rounds": ROUNDS, "round-timeout": DEADLINE, "min-success-fraction": 0.3}
CRASHES, SLOW, BROKEN = NODES
LOST = BROKEN
SHORT: dict[str, Any] = {
    "num-server-rounds": 3,
    "local-steps": 2,
    "batch-size": 8,
    "round-timeout": 20.0,
    "min-success-fraction": 0.3,
    "data.validation-rows": 50,
    "data.test-rows": 50,
}

SPOIL = '''
"""Spoils the updates of local training while a file is there."""
import pathlib, sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


class Spoiling(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "client_app.training":
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            sent = module.wire.pack

            def pack(state):
                if pathlib.Path(FLAG).exists():
                    for tensor in state.tensors.values():
                        tensor.fill_(float("nan"))
                return sent(state)

            module.wire.pack = pack

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Spoiling())
'''


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Shares:
    """Rows of all kinds for everybody: what one node misses the others know, else nobody could make up for it."""
    return Shares.write(tmp_path_factory.mktemp("shares"), SPLIT | {"data.partitioner": "iid"}, NODES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a file `broken` lies while one node spoils what it sends."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def deployment(apart: bool, shares: Shares, folder: Path) -> Iterator[Deployment]:
    (folder / "sitecustomize.py").write_text(SPOIL.replace("FLAG", repr(str(folder / "broken"))))
    with Deployment(NODES, apart) as running:
        for name in NODES:
            own = {"PYTHONPATH": str(folder)} if name == BROKEN else {}
            running.node(name, node_config(shares, name), own, "thistledown-superexec")
        running.online(len(NODES))
        yield running


def disturbed(deployment: Deployment, shares: Shares, folder: Path) -> tuple[Run, str]:
    """A run in which all three have their misfortune, one after another, and its log; it has ended."""
    slow = deployment.executors[SLOW]
    run = deployment.submit(deployed(shares) | SETTINGS)
    deployment.nodes[CRASHES].until("Receiving: train message", seconds=600)
    deployment.nodes[CRASHES].kill()
    run.until_refused(CRASHES)
    slow.send(signal.SIGSTOP)
    deployment.restart(CRASHES)  # while the round waits for the slow one
    run.until_refused(SLOW)
    slow.send(signal.SIGCONT)
    (folder / "broken").touch()
    run.until_refused(BROKEN)
    (folder / "broken").unlink()

    assert run.end() == "finished:completed", run.log
    return run, run.log


def replayed(record: Record, shares: Shares, folder: Path) -> None:
    replay(record, {name: node_config(shares, name) for name in NODES}, folder)


def test_the_run_goes_on(deployment: Deployment, shares: Shares, folder: Path, tmp_path: Path) -> None:
    run, log = disturbed(deployment, shares, folder)
    rounds, refused = run.rounds, run.refused
    assert len(rounds) == ROUNDS + 1
    assert not any(entry["failed"] for entry in rounds)
    assert not refused[-1], refused  # everybody is back
    assert len(rounds[-1]["nodes"]) == len(NODES)
    for node, reason in [
        (CRASHES, "no reply before the deadline|node error 5"),
        (SLOW, "no reply before the deadline"),
        (BROKEN, "holds NaN or infinity"),
    ]:
        assert re.search(rf"round \d+: dropped the reply of node {node}: .*({reason})", log), log
    replayed(Record.of(run.results), shares, tmp_path)


def test_a_run_that_loses_a_node(deployment: Deployment, shares: Shares, tmp_path: Path) -> None:
    """The last of this file, as the node stays away. Whichever replies are lost on this machine: the record says so."""
    (deployment.folder / "outputs" / "latest").unlink()  # else the rounds of the run before are read
    run = deployment.submit(deployed(shares) | SHORT)
    run.until_round(1)
    deployment.nodes[LOST].kill()
    assert run.end() == "finished:completed", run.log
    assert any(LOST in lost for lost in run.refused), run.refused
    replayed(Record.of(run.results), shares, tmp_path)

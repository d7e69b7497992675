"""A deployment does what a simulation does, bit for bit; and whoever is not of it stays outside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import thistledown
from benchmarks.deployed import Deployment
from benchmarks.program import Program, free_port
from benchmarks.shares import Shares
from deployment.three import NODES, RANKS, SETTINGS, deployed, node_config
from strategies.exchange.types import State
from strategies.protocol import checkpoint
from strategies.protocol.checkpoint import LAST
from thistledown.commands.certs import Keys

pytestmark = pytest.mark.flower

# Flower's, which a SuperNode starts itself; ours, with processes that stay or that serve one message
EXECUTORS = ["", "thistledown-superexec", "thistledown-superexec --resident-runs 0"]


@pytest.fixture(scope="module")
def deployment(apart: bool, shares: Shares) -> Iterator[Deployment]:
    with Deployment(NODES, apart) as running:
        for name, executor in zip(NODES, EXECUTORS, strict=True):
            running.node(name, node_config(shares, name), executor=executor)
        running.online(len(NODES))
        yield running


def simulated(shares: Shares, folder: Path) -> State:
    """What a simulation in this process ends with, from the same seed and split; `tests/test_simulate.py` holds one on
    Ray to the same bits."""
    settings: dict[str, Any] = SETTINGS | {
        "data.name": str(shares.whole),
        "simulation.num-supernodes": len(NODES),
    }
    outcome = thistledown.simulate(output_dir=folder, **settings)
    return checkpoint.load(outcome.folder / "checkpoints" / LAST)[0]


def test_the_tensors_of_a_simulation(deployment: Deployment, shares: Shares, tmp_path: Path) -> None:
    run = deployment.submit(deployed(shares))
    assert run.end() == "finished:completed", run.log
    assert [{line["node"]: line["rank"] for line in entry["nodes"]} for entry in run.rounds[1:]] == [
        dict(zip(NODES, RANKS, strict=True))
    ] * 2
    assert not [line for entry in run.rounds for line in entry["nodes"] if line["refused"]]
    found, _ = checkpoint.load(run.results / "checkpoints" / LAST)
    wanted = simulated(shares, tmp_path)
    assert found.tensors.keys() == wanted.tensors.keys()
    assert len(found.tensors) == 50
    unequal = [name for name, tensor in wanted.tensors.items() if not torch.equal(tensor, found.tensors[name])]
    assert not unequal
    stays, fresh = (deployment.executors[name].log.count("Start `flwr-clientapp` process") for name in NODES[1:])
    assert stays == 1
    assert fresh > len(run.rounds[1:])


def intruder(deployment: Deployment, key: Path | None, authority: Path) -> Program:
    """A SuperNode that proves itself by a key and trusts an authority, on a machine of the federation."""
    config = {"name": "intruder"}
    command = deployment.node_command(deployment.machines[NODES[0]], authority, key, config, free_port())
    return Program(deployment.folder / "intruder", command).start()


def test_a_node_that_is_not_registered_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    strange = Keys(tmp_path, ["localhost"], ["strange"], days=2)
    strange.make()
    program = intruder(deployment, strange.node("strange").private, deployment.keys.authority.public)
    program.until(r"\[code: 2004\] Failed to activate SuperNode")
    assert program.wait() != 0


def test_a_node_without_a_key_is_refused(deployment: Deployment) -> None:
    program = intruder(deployment, None, deployment.keys.authority.public)
    program.until(r"\[code: 2001\] SuperNode authentication is enabled")
    assert program.wait() != 0


def test_a_node_with_another_authority_does_not_connect(deployment: Deployment, tmp_path: Path) -> None:
    strange = Keys(tmp_path, ["localhost"], [], days=2)
    strange.make()
    program = intruder(deployment, deployment.keys.node(NODES[0]).private, strange.authority.public)
    program.until("CERTIFICATE_VERIFY_FAILED")
    assert program.wait() != 0

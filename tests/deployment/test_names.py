"""On a real deployment with TLS and node authentication a name belongs to the key that was registered under it."""

import re
import subprocess

import pytest

from benchmarks.deployed import Deployment
from benchmarks.shares import Shares
from deployment.three import NODES, deployed, node_config

pytestmark = pytest.mark.flower

THIEF, ROBBED = "3", "1"


def test_a_name_is_not_taken_while_its_node_is_down(apart: bool, shares: Shares) -> None:
    """Node 3 says that it is node 1, which is down. It stays out, and the real one has its place when it comes.

    The run has more rounds than it needs: it ends as soon as the real one has trained.
    """
    settings = deployed(shares) | {"num-server-rounds": 500, "node-names": "registered"}
    settings |= {"min-available-nodes": 2, "round-timeout": 120.0}
    with Deployment([*NODES, THIEF], apart) as deployment:
        for name in NODES:
            if name != ROBBED:
                deployment.node(name, node_config(shares, name), executor="thistledown-superexec")
        stolen = node_config(shares, ROBBED) | {"name": ROBBED}
        deployment.node(THIEF, stolen, executor="thistledown-superexec")
        deployment.online(3)
        run = deployment.submit(settings)
        run.until_round(1)
        deployment.node(ROBBED, node_config(shares, ROBBED), executor="thistledown-superexec")
        run.until_trained(ROBBED)
        log, rounds = run.log, run.rounds
        key = deployment.keys.node(THIEF).public
        printed = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True).stdout
    others = [name for name in NODES if name != ROBBED]
    assert [line["node"] for line in rounds[1]["nodes"]] == others
    assert [line["node"] for line in rounds[-1]["nodes"]] == NODES, log
    refusal = re.search(r"left out node \d+: it says it is '1', but its key \((SHA256:\S+)\) is registered as '3'", log)
    assert refusal is not None, log
    assert refusal[1] in printed

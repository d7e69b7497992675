"""An app that is not ours, on a deployment as docs/deploy.md sets it up: it asks nodes for their raw rows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.deployed import APP, CONNECTION, Deployment, Run
from benchmarks.program import Program, free_port
from thistledown.processes.bundle import app_hash
from thistledown.processes.pins import REFUSED

pytestmark = pytest.mark.flower

SECRET = "patient 4711 has it"
PINNED, UNPINNED, TRUSTING = ["clinic-1", "clinic-2"], "clinic-3", "clinic-4"
PROJECT = """
[project]
name = "thistledown"
version = "0.1.0"
[tool.flwr.app]
publisher = "thistledown"
[tool.flwr.app.components]
serverapp = "foreign:server"
clientapp = "foreign:client"
[tool.flwr.app.config]
some = 1
"""
FOREIGN = """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.query("rows")
def rows(message, context):
    text = Path(str(context.node_config["data-path"])).read_text()
    return Message(RecordDict({"rows": ConfigRecord({"text": text})}), reply_to=message)

@server.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < 4:
        time.sleep(1)
    sent = [Message(RecordDict(), dst_node_id=node, message_type="query.rows") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(sent, timeout=240):
        found = reply.error.reason if reply.has_error() else reply.content["rows"]["text"]
        print(f"REPLY {reply.error.code if reply.has_error() else 0} {found}")
"""


@pytest.fixture
def deployment(tmp_path: Path, apart: bool) -> Iterator[Deployment]:
    """Two nodes as the page says, one that pins nothing, and one that trusts what somebody has signed."""
    (tmp_path / "rows.csv").write_text(f"text,label\n{SECRET},1\n")
    config = {"data-path": str(tmp_path / "rows.csv")}
    signer = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (tmp_path / "trusted.yaml").write_text(f"fpk_one: {signer.decode()}\n")
    with Deployment([*PINNED, UNPINNED, TRUSTING], apart) as running:
        for name in PINNED:
            running.node(name, config, executor="thistledown-superexec")
        running.node(UNPINNED, config)
        machine, keys = running.machines[TRUSTING], running.keys
        proof = keys.node(TRUSTING).private
        command = running.node_command(machine, keys.authority.public, proof, config, free_port())
        Program(running.folder / TRUSTING, (*command, "--trusted-entities", str(tmp_path / "trusted.yaml"))).start()
        running.online(4)
        yield running


def test_nodes_run_what_is_pinned(deployment: Deployment, tmp_path: Path) -> None:
    """It has the name, version and publisher of ours, and gets rows where nobody has pinned anything, and only there.

    A node with Flower's trusted entities refuses it too, but would refuse ours as well.
    """
    foreign = tmp_path / "thistledown"
    foreign.mkdir()
    (foreign / "pyproject.toml").write_text(PROJECT)
    (foreign / "foreign.py").write_text(FOREIGN)
    said = json.loads(deployment.flwr("run", str(foreign), CONNECTION, "--format", "json"))
    assert "run-id" in said, said
    run = Run(deployment, str(said["run-id"]))
    assert run.until_finished() == "finished:completed", run.log
    log = run.log
    assert log.count("REPLY ") == 4, log
    assert log.count(f"REPLY 2 <class 'thistledown.processes.pins.ForeignApp'>:<'{REFUSED}'>") == len(PINNED), log
    assert log.count("REPLY 7 The FAB could not be verified") == 1, log
    assert log.count(SECRET) == 1, log
    for name in PINNED:
        refusal = f"refused the app {app_hash(foreign)}, which is not pinned; pinned are {app_hash(APP)}"
        assert refusal in deployment.executors[name].log
        assert not list((deployment.folder / name).rglob("foreign.py"))

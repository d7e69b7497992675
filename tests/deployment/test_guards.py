"""Flower's control interface is open to whoever reaches the port; the files in deploy/ close it."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.deployed import APP, Deployment
from benchmarks.machines import Machine, machines
from benchmarks.program import BIN, QUIET, START, Program, free_port
from thistledown.commands.certs import Keys

pytestmark = pytest.mark.flower

NODES = ["0"]


@pytest.fixture(scope="module")
def deployment(apart: bool) -> Iterator[Deployment]:
    with Deployment(NODES, apart) as running:
        yield running


def status(deployment: Deployment, machine: Machine, port: int, path: str) -> int:
    """The HTTP status that somebody on a machine gets for a POST."""
    asked = subprocess.run(
        [
            *machine.prefix, "curl", "--silent", "--path-as-is", "--max-time", "10",
            "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert", str(deployment.keys.authority.public),
            "--data", "", f"https://{machine.address}:{port}{path}",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    return int(asked.stdout or 0)


def registers(deployment: Deployment, machine: Machine, port: int, folder: Path) -> bool:
    """Does `flwr` on a machine, with nothing but `ca.crt`, make the federation take a strange node?"""
    strange = Keys(folder, ["localhost"], [f"strange-{port}"], days=2)
    strange.make()
    connection = f'[superlink.it]\naddress = "{machine.address}:{port}"\n'
    (folder / "config.toml").write_text(f'{connection}root-certificates = "{deployment.keys.authority.public}"\n')
    command = [str(BIN / "flwr"), "supernode", "register", str(strange.node(f"strange-{port}").public), "it"]
    own = os.environ | QUIET | {"FLWR_HOME": str(folder)}
    return subprocess.run([*machine.prefix, *command], env=own, capture_output=True, timeout=300).returncode == 0


def test_whoever_reaches_the_port_may_register_nodes(deployment: Deployment, tmp_path: Path) -> None:
    """Why all this is needed. Where Flower changes it, the rest may be superfluous."""
    assert registers(deployment, deployment.machines["0"], deployment.port, tmp_path)


@contextmanager
def proxied(deployment: Deployment) -> Iterator[int]:
    """The port of nginx with the file in deploy/, in front of a SuperLink."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(nginx).exists():
        pytest.skip("nginx is not installed, which deploy/nginx.conf is for")
    port, folder = free_port(), deployment.folder / "nginx"
    folder.mkdir()
    text = (APP / "deploy" / "nginx.conf").read_text()
    for before, after in [
        ("/etc/thistledown/keys", str(deployment.keys.folder)),
        ("listen 9443", f"listen {port}"),
        ("127.0.0.1:8000", f"127.0.0.1:{deployment.port}"),
    ]:
        assert before in text
        text = text.replace(before, after)
    head = f"user root;\npid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log {folder}/access.log;\n"
    (folder / "nginx.conf").write_text(head + text + "}\n")
    command = (
        nginx,
        "-p",
        str(folder),
        "-c",
        str(folder / "nginx.conf"),
        "-e",
        str(folder / "errors"),
        "-g",
        "daemon off;",
    )
    Program(folder, command).start()
    deadline = time.monotonic() + START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
    yield port


def test_behind_the_proxy_a_node_is_a_node_and_no_more(deployment: Deployment, tmp_path: Path) -> None:
    machine = deployment.machines["0"]
    with proxied(deployment) as port:
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/health", "/v1/fleet/../control/list-runs"):
            assert status(deployment, machine, port, path) == 403, path
        assert not registers(deployment, machine, port, tmp_path)
        keys = deployment.keys
        command = deployment.node_command(
            machine, keys.authority.public, keys.node("0").private, {"name": "0"}, free_port(), superlink_port=port
        )
        node = Program(deployment.folder / "0", command).start()
        deployment.online(1)
        node.until("SuperNode ID")
        listed = json.loads(deployment.flwr("supernode", "list", "my-federation", "--format", "json"))
        assert [entry["status"] for entry in listed["nodes"]].count("online") == 1


def test_the_firewall_lets_in_whom_it_names(apart: bool, tmp_path: Path) -> None:
    """In a namespace of its own, with a listener at the port; another namespace knocks before and after it is named."""
    nft = shutil.which("nft") or "/usr/sbin/nft"
    if not apart:
        pytest.skip("a firewall is tried in a network namespace only, which needs root and the program ip")
    if not Path(nft).exists():
        pytest.skip("nft is not installed, which deploy/nftables.conf is for")
    with machines(1, apart=True) as (server,):
        name = server.prefix[-1]
        near, far = server.address, server.address.removesuffix("1") + "2"
        listener = subprocess.Popen([*server.prefix, "python3", "-m", "http.server", "8000"], cwd=tmp_path)
        try:
            inside = [
                *server.prefix,
                "curl",
                "--silent",
                "--output",
                "/dev/null",
                "--retry",
                "5",
                "--retry-connrefused",
            ]
            subprocess.run([*inside, "http://127.0.0.1:8000/"], check=True)
            assert reached(far)
            subprocess.run(["ip", "netns", "exec", name, nft, "-f", str(APP / "deploy" / "nftables.conf")], check=True)
            assert not reached(far)
            subprocess.run([*inside, "http://127.0.0.1:8000/"], check=True)
            subprocess.run(
                [*server.prefix, nft, "add", "element", "inet", "thistledown", "nodes", f"{{ {near} }}"], check=True
            )
            assert reached(far)
        finally:
            listener.kill()
            listener.wait()


def reached(address: str) -> bool:
    """Does somebody listen at port 8000 who lets this machine in?"""
    try:
        socket.create_connection((address, 8000), 5).close()
    except ConnectionRefusedError:
        return False
    return True

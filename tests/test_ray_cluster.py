"""A simulation on a Ray cluster of two nodes, of which one is killed and comes back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from in_process import equal

import thistledown
from strategies.protocol import checkpoint
from thistledown.main import WRONG, main
from thistledown.processes.superlink import free_port

pytestmark = pytest.mark.flower

RAY = Path(sys.executable).with_name("ray")
COMMAND = Path(sys.executable).with_name("thistledown")
SIZE = ("--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", str(100 * 2**20))
QUIET = ("--disable-usage-stats", "--block", "--node-ip-address", "127.0.0.1")
KEYS = (
    "num-server-rounds=6 simulation.num-supernodes=4 local-steps=4 data.validation-rows=60 data.test-rows=60 "
    "round-timeout=240"
)


@contextmanager
def node(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A node of Ray with one core, whose processes end with this block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [RAY, "start", *arguments, *SIZE, *QUIET], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a node and all its processes, without a word."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def await_port(port: int) -> None:
    """Wait until something listens on a port of the loopback."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "Ray did not start"
            time.sleep(0.2)


def rounds_in(outputs: Path) -> int:
    lines = outputs / "latest" / "metrics.jsonl"
    return len(lines.read_text().splitlines()) if lines.exists() else 0


@pytest.mark.slow
def test_a_ray_node_that_dies_and_comes_back_costs_no_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THISTLEDOWN_CACHE", str(tmp_path / "cache"))  # Ray's workers have what Ray started with
    port, killed = free_port(), False
    with ExitStack() as nodes:
        # short, as sockets lie in it, and its own: in Ray's folder others would find an address of what is gone
        own = nodes.enter_context(TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True))
        nodes.enter_context(node("--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", own))
        address = f"127.0.0.1:{port}"
        await_port(port)
        second = nodes.enter_context(node("--address", address))
        command = [COMMAND, "run", "--ray-address", address, "-c", f"output-dir='{tmp_path / 'cluster'}' {KEYS}"]
        run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        nodes.callback(run.kill)
        while run.poll() is None:
            if not killed and rounds_in(tmp_path / "cluster") >= 2:
                assert second.poll() is None
                kill(second)
                nodes.enter_context(node("--address", address))
                killed = True
            time.sleep(0.1)
        said = run.communicate()[0]
    assert run.returncode == 0, said
    assert "nodes at a time" not in said  # as this machine's cores would have it
    assert killed
    here = thistledown.simulate(
        num_server_rounds=6,
        simulation={"num_supernodes": 4},
        local_steps=4,
        data={"validation_rows": 60, "test_rows": 60},
        output_dir=tmp_path / "here",
    )
    there = (tmp_path / "cluster" / "latest").resolve()
    assert json.loads((there / "summary.json").read_text())["status"] == "completed"
    one, other = (checkpoint.load(folder / "checkpoints" / "last.safetensors")[0] for folder in (here.folder, there))
    assert equal(one.tensors, other.tensors)


def test_the_local_engine_knows_no_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--engine", "local", "--ray-address", "127.0.0.1:1"]) == WRONG
    assert "--engine local runs without Ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("first", "write HOST:PORT"),
        ("127.0.0.1:1", "cannot be reached: "),
        ("127.0.0.1:70000", "cannot be reached: "),
    ],
)
def test_an_address_without_ray_is_said_at_once(address: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--ray-address", address]) == WRONG
    assert f"--ray-address {address}" in (error := capsys.readouterr().err)
    assert said in error

"""A simulation on a machine that others use too: what listens, who may submit, what is left of it, who is replaced."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from thistledown.processes import leftovers
from thistledown.processes.leftovers import end_processes_in, processes_in, sweep
from thistledown.processes.superlink import SuperLink

BIN = Path(sys.executable).parent
RUN = "num-server-rounds=1000 simulation.num-supernodes=3 tuning='head' local-steps=1 evaluate-every=1000"
RAY = """
import sys
from ray._raylet import GcsClient
print("SEEN", len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20)))
"""
STRANGER = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "FLWR_", "THISTLEDOWN_"))}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short temporary folder for the command: sockets live in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp")).resolve()
    (folder / "t").mkdir()
    yield folder
    end_processes_in(folder)
    shutil.rmtree(folder)


def started(temporary: Path, config: str = RUN) -> "subprocess.Popen[str]":
    """`thistledown run`, with its temporary files in `temporary`."""
    return subprocess.Popen(
        [str(BIN / "thistledown"), "run", "-c", config],
        cwd=temporary, env=os.environ | {"TMPDIR": str(temporary / "t")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def until(process: "subprocess.Popen[str]", said: str) -> list[str]:
    """Read on to a line that begins so."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(said):
            return lines
    raise AssertionError("".join(lines))


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses on which processes listen."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def workers(folder: Path) -> list[psutil.Process]:
    return [process for process in processes_in(folder) if "ClientAppActor" in " ".join(process.cmdline())]


def flwr(folder: Path, home: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    own = STRANGER | {"FLWR_HOME": home, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return subprocess.run(
        [str(BIN / "flwr"), *arguments], cwd=folder.parent, env=own, capture_output=True, text=True, timeout=120
    )


def sees(folder: Path, port: int, own: dict[str, str]) -> str:
    """What a process of its own learns of the Ray at a port."""
    command = [sys.executable, "-c", RAY, f"127.0.0.1:{port}"]
    ran = subprocess.run(command, cwd=folder, env=STRANGER | own, capture_output=True, text=True, timeout=120)
    return ran.stdout + ran.stderr


@pytest.mark.flower
def test_nobody_else_reaches_it_and_nothing_is_left_of_it_when_it_is_killed(temporary: Path) -> None:
    process = started(temporary)
    until(process, "round 1/1000")
    (folder,) = (temporary / "t").glob("ts-*")
    there = processes_in(folder)

    # Ray and the SuperLink are on loopback.
    assert listening(there) <= {"127.0.0.1", "::1"}
    # What opens them is in no command line, and in no file that others can read.
    (simulation,) = [one for one in there if "programs.py simulation" in " ".join(one.cmdline())]
    secrets = [simulation.environ()[name] for name in ("RAY_AUTH_TOKEN", "THISTLEDOWN_CONTROL_SECRET")]
    assert all(len(secret) == 64 for secret in secrets)
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]  # a zombie has none
    assert not [line for line in lines for secret in secrets if secret in line]
    assert folder.stat().st_mode & 0o077 == 0

    # Somebody without the token runs nothing in Ray.
    (gcs,) = [one for one in there if one.name() == "gcs_server"]
    ports = {at.laddr.port for at in gcs.net_connections("tcp") if at.status == psutil.CONN_LISTEN}
    for port in ports:
        known = sees(
            temporary, port, {name: simulation.environ()[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        )
        assert "SEEN 1" in known, known
        assert "SEEN" not in sees(temporary, port, {})
        assert "SEEN" not in sees(temporary, port, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})

    # Somebody without the secret neither sees nor starts runs.
    home = temporary / "stranger"
    home.mkdir()
    shutil.copy(folder / "home" / "config.toml", home)
    assert flwr(folder, str(folder / "home"), "list", "simulation").returncode == 0
    for arguments in (["list", "simulation"], ["run", str(folder / "app"), "simulation"]):
        done = flwr(folder, str(home), *arguments)
        assert done.returncode != 0, done.stdout
    superexec = [str(BIN / "flower-superexec"), "--insecure", "--runtime-api-address"]
    address = next(one for one in there if "programs.py superlink" in " ".join(one.cmdline())).cmdline()
    stolen = subprocess.Popen(
        [*superexec, f"127.0.0.1:{address[address.index('--port') + 1]}"],
        cwd=temporary, env=STRANGER, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    stolen.communicate(timeout=60)  # it would work on for ever
    assert "SuperExec authentication failed" in (folder / "superlink.log").read_text()

    # What it leaves when it is killed ends and is swept, which nothing is that is at work.
    live = SuperLink()
    try:
        assert folder.exists(), "a live run was swept"
    finally:
        shutil.rmtree(live.folder)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while left := processes_in(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert sweep(temporary / "t") == [folder]
    assert not list((temporary / "t").glob("ts-*"))


@pytest.mark.flower
def test_a_worker_that_dies_is_replaced(temporary: Path) -> None:
    """Its message is done once more, and all nodes are in all rounds; without that, two of three fail from then on."""
    process = started(temporary, RUN.replace("1000", "60"))
    until(process, "round 1/60")
    (folder,) = (temporary / "t").glob("ts-*")
    before = {one.pid for one in workers(folder)}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        time.sleep(1.0)
    deadline = time.monotonic() + 60
    while not {one.pid for one in workers(folder)} - before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    lines = until(process, "60 rounds over 3 nodes")
    process.communicate(timeout=60)
    said = "".join(lines)
    assert before
    assert process.returncode == 0, said
    rounds = [json.loads(line) for line in (temporary / "outputs/latest/metrics.jsonl").read_text().splitlines()]
    assert [len(entry["nodes"]) for entry in rounds[1:]] == [3] * 60
    assert not [line["refused"] for entry in rounds for line in entry["nodes"] if line["refused"]]
    assert not list((temporary / "t").glob("ts-*"))


def test_only_unlocked_folders_are_swept(tmp_path: Path) -> None:
    """Not those of live runs, nor what only looks like one."""
    held, killed, empty, other = (tmp_path / name for name in ("ts-held", "ts-killed", "ts-empty", "tm-other"))
    for folder in (held, killed, empty, other):
        folder.mkdir()
    (other / "work").mkdir()
    (tmp_path / "ts-linked").symlink_to(other)
    handle = leftovers.lock(held)
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import sys, thistledown.processes.leftovers as l, pathlib, time;"
         "l.lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(600)", str(killed)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert sleeper.stdout is not None
    sleeper.stdout.readline()
    child = subprocess.Popen(["sleep", "600"], cwd=killed / "work")
    try:
        assert sweep(tmp_path) == []
        sleeper.send_signal(signal.SIGKILL)
        sleeper.wait()
        assert sweep(tmp_path) == [killed]
        child.wait(20)
    finally:
        sleeper.kill()
        child.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tm-other", "ts-empty", "ts-held", "ts-linked"]
    os.close(handle)
    assert sweep(tmp_path) == [held]


HIDDEN = """
import subprocess, sys
from pathlib import Path
from thistledown.processes.leftovers import processes_in

folder = Path(sys.argv[1])
hides = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0); print(flush=True); time.sleep(600)"
command = [sys.executable, "-c", hides]
ours = subprocess.Popen([*command, str(folder / "app-hashes")], cwd=folder, stdout=subprocess.PIPE)
other = subprocess.Popen([*command, str(folder.parent / "other")], cwd="/", stdout=subprocess.PIPE)
try:
    for process in (ours, other):
        process.stdout.readline()
    print([one.pid for one in processes_in(folder)] == [ours.pid])
finally:
    for process in (ours, other):
        process.kill()
        process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Flower hides processes on Linux alone")
def test_a_process_that_hides_its_directory_from_users_is_found_by_its_arguments(tmp_path: Path) -> None:
    """As Flower's SuperExec does. Root sees it all the same, and is nobody special in a user namespace."""
    namespace = ["unshare", "--user"] if os.geteuid() == 0 else []
    if namespace and subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    command = [*namespace, sys.executable, "-c", HIDDEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stdout + done.stderr

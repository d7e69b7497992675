"""A real run whose every process is killed, SuperLink, ServerApp and nodes, and that goes on in new ones."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from in_process import QV, SMALL, federate

from strategies.protocol import checkpoint

pytestmark = pytest.mark.flower
COMMAND = str(Path(sys.executable).with_name("thistledown"))
ROUNDS = 6
OPTIONS = SMALL | QV | {
    "num-server-rounds": ROUNDS, "strategy": "rbla", "lora.ranks": "2,4,8", "wrappers": "quantize"
}  # fmt: skip
PATIENCE = 540.0  # seconds


@contextmanager
def started(place: Path, options: dict[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    """The command at work, which is ended if the test is."""
    pairs = " ".join(f"{key}={value!r}" for key, value in options.items())
    process = subprocess.Popen(
        [COMMAND, "run", "-c", pairs],
        cwd=place,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kill_all(command: int) -> None:
    """SIGKILL to everything that works in the folder of a command's SuperLink: it is how they are found again."""
    (superlink,) = [p for p in psutil.Process(command).children() if "programs.py superlink" in " ".join(p.cmdline())]
    folder = Path(superlink.cwd()).parent
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                process.kill()
        except (psutil.Error, OSError):
            continue


@pytest.mark.judged
def test_all_processes_are_killed_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Of a run that nobody interrupted, and that had no processes of its own."""
    whole = federate(tmp_path / "whole", OPTIONS).folder
    latest = tmp_path / "outputs" / "latest"
    deadline = time.monotonic() + PATIENCE
    with started(tmp_path, OPTIONS) as process:
        while not latest.exists() or len(lines(latest)) < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        kill_all(process.pid)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, said
    folder = latest.resolve()
    killed = json.loads((folder / "summary.json").read_text())
    assert killed["status"] == "interrupted"  # by the command, as nobody else could write another word
    assert "resume it: thistledown run -c" in said
    assert 3 <= killed["rounds"] < ROUNDS
    with started(tmp_path, {"resume": "latest"}) as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert latest.resolve() == folder
    assert f"resuming {folder} after round " in said
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["resumed"] in ([killed["rounds"]], [killed["rounds"] - 1])
    assert [line["round"] for line in lines(folder)] == list(range(ROUNDS + 1))
    for which in ("last.safetensors", "best.safetensors"):
        one, other = (checkpoint.load(place / "checkpoints" / which)[0] for place in (whole, folder))
        assert one.tensors.keys() == other.tensors.keys()
        assert all(tensor.equal(other.tensors[name]) for name, tensor in one.tensors.items())
    quality = [[line.get(key) for key in ("accuracy", "loss", "train-loss")] for line in lines(folder)]
    assert quality == [[line.get(key) for key in ("accuracy", "loss", "train-loss")] for line in lines(whole)]
    assert sorted(path.name for path in folder.glob("run*.log")) == ["run-2.log", "run.log"]

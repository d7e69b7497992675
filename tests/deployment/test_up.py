"""`thistledown up` as a user starts it: from an empty folder, with files of three nodes, to results without a trace."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.shares import Shares
from thistledown.processes.leftovers import processes_in

pytestmark = pytest.mark.flower

COMMAND = str(Path(sys.executable).with_name("thistledown"))
QUICK = "strategy='rbla' lora.ranks='2,4,8' num-server-rounds=2 local-steps=2 round-timeout=600.0"


def files(shares: Shares, place: Path) -> list[str]:
    """The nodes' shares, one of them a folder of its own, in an empty folder."""
    folder, *others = shares.files
    return [
        str(folder.parent),
        *(str(file.rename(place / f"clinic-{n}{file.suffix}")) for n, file in enumerate(others)),
    ]


def own(tmp_path: Path) -> Shares:
    return Shares.write(tmp_path / "shares", {"data.partitioner": "iid"}, ["clinic-a", "clinic-b", "clinic-c"])


def completed(results: Path) -> None:
    summary = json.loads((results / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    lines = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
    assert {line["node"] for line in lines[1]["nodes"]} == {"clinic-a", "clinic-0", "clinic-1"}


def test_one_command_deploys_runs_and_leaves_results_alone(tmp_path: Path) -> None:
    (place := tmp_path / "here").mkdir()
    command = [COMMAND, "up", *files(own(tmp_path), place), "--run", "-c", QUICK]
    done = subprocess.run(command, cwd=place, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    completed(place / "outputs" / "latest")
    assert {path.name for path in place.iterdir()} == {"clinic-0.jsonl", "clinic-1.parquet", "outputs"}


def test_it_stays_up_for_flwr_run_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    (place := tmp_path / "here").mkdir()
    command = [COMMAND, "up", *files(own(tmp_path), place), "-c", QUICK]
    up = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    try:
        assert up.stdout is not None
        said = next(line for line in up.stdout if line.startswith("FLWR_HOME="))
        home, *run = shlex.split(said)
        folder = Path(home.partition("=")[2]).parent
        path = os.pathsep.join([str(Path(COMMAND).parent), os.environ["PATH"]])
        environment = os.environ | {"FLWR_HOME": home.partition("=")[2], "PATH": path}
        subprocess.run(run, cwd=place, env=environment, check=True, timeout=900)
        completed(place / "outputs" / "latest")
        (stranger := tmp_path / "stranger").mkdir()  # who can reach the SuperLink, but not read the folder
        shutil.copy(folder / "home" / "config.toml", stranger)
        assert subprocess.run(run, cwd=place, env=environment | {"FLWR_HOME": str(stranger)}).returncode != 0
        assert len(list((place / "outputs").glob("*-rbla"))) == 1
        assert processes_in(folder)
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=120) == 130
    assert not processes_in(folder)
    assert not folder.exists()

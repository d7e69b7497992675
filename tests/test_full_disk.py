"""A disk that is full: one sentence that names the folder, and what there was is whole."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import equal, federate, left, resumed
from safetensors.torch import save_file

from server_app.callbacks.results_folder import Results
from strategies.exchange.callback import RoundReport
from strategies.exchange.types import State
from strategies.protocol import checkpoint
from task.device import cores
from task.storage.room import NoRoom, room
from task.storage.store import Store, StoreError

OPTIONS: dict[str, Any] = {"num-server-rounds": 8, "tuning": "head"}
COMMAND = str(Path(sys.executable).parent / "thistledown")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: the system says so as it does of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_run_whose_disk_is_full_says_so_and_goes_on_when_it_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is full in the middle of the line of round 5."""
    whole = federate(tmp_path / "whole", OPTIONS)
    keep = Results.on_round

    def on_round(results: Results, report: RoundReport, state: State) -> None:
        written = results.folder / "metrics.jsonl"
        size = written.stat().st_size + 20 if report.number == 5 else resource.RLIM_INFINITY
        with files_up_to(size):
            keep(results, report, state)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "on_round", on_round)
        with pytest.raises(NoRoom, match=r"there is no room left for files in .*fedavg"):
            federate(tmp_path / "full", OPTIONS)
    assert "the run failed: there is no room left for files in" in caplog.text
    folder = (tmp_path / "full" / "latest").resolve()
    assert checkpoint.load(folder / "checkpoints" / checkpoint.LAST)[1]["round"] == 4
    assert left(tmp_path / "full")[0]["status"] == "failed"
    again = resumed(folder)
    assert equal(again.state().tensors, whole.state().tensors)
    assert [line["round"] for line in again.rounds] == list(range(9))
    assert left(tmp_path / "full")[0]["status"] == "completed"


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, State({"w": torch.ones(10)}), {"round": 1})
    with files_up_to(10_000), pytest.raises(NoRoom, match=str(tmp_path)):
        checkpoint.save(path, State({"w": torch.ones(100_000)}), {"round": 2})
    assert checkpoint.load(path)[1]["round"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_store_that_is_full_says_so(store: Store) -> None:
    def bytes_in(draft: Path) -> None:
        (draft / "file").write_bytes(bytes(100_000))

    def tensors_in(draft: Path) -> None:
        save_file({"w": torch.ones(100_000)}, draft / "file")

    def make(fill: Callable[[Path], None]) -> None:
        with store.made("some", "thing") as draft:
            assert draft is not None
            fill(draft)

    for fill in (bytes_in, tensors_in):
        with files_up_to(10_000), pytest.raises(StoreError, match="there is no room left for files in"):
            make(fill)
        assert not store.path("some", "thing").exists()


def test_what_is_no_full_disk_is_not_called_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), room(tmp_path):
        (tmp_path / "none").read_text()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems may not be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.flower
def test_the_command_ends_as_for_other_failures(small: Path, tmp_path: Path) -> None:
    config = (
        f"num-server-rounds=1000 simulation.num-supernodes=2 simulation.num-cpus={cores()} local-steps=1 "
        f"tuning='head' output-dir='{small}'"
    )
    ran = subprocess.run(
        [COMMAND, "run", "-c", config], cwd=tmp_path, capture_output=True, text=True, timeout=1800, env=os.environ
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 3, said
    assert f"there is no room left for files in {small}" in said, said
    assert "Traceback" not in said
    folder = (small / "latest").resolve()
    _, about = checkpoint.load(folder / "checkpoints" / checkpoint.LAST)
    assert about["round"] >= 1
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[about["round"]])["round"] == about["round"]

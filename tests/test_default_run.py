"""The default, as `thistledown run` runs it: real processes, real Ray, the whole fifteen rounds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import thistledown

pytestmark = pytest.mark.flower
COMMAND = Path(sys.executable).with_name("thistledown")


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the default run."""
    place = tmp_path_factory.mktemp("default")
    done = subprocess.run(
        [COMMAND, "run"], cwd=place, env=os.environ, capture_output=True, encoding="utf-8", timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (place / "outputs" / "latest").resolve()


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


@pytest.mark.judged
def test_it_learns(default: Path) -> None:
    found = summary(default)
    assert found["status"] == "completed"
    assert found["rounds"] == 15
    assert found["base"] < 0.2
    assert found["final"] >= 0.80
    assert set(found["ranks"].values()) == {8}


def test_bytes_are_those_of_the_records(default: Path) -> None:
    """Ten nodes send and get 29,322 float32 numbers in each of 15 rounds; all else is below 2 percent."""
    numbers = 10 * 15 * 29_322 * 4
    for way in ("bytes_up", "bytes_down"):
        assert numbers < summary(default)[way] < 1.02 * numbers


def scores(folder: Path) -> list[tuple[float, float, float | None]]:
    """Accuracy, loss and training loss of every round, to the last digit."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["accuracy"], line["loss"], line.get("train-loss")) for line in lines]


def test_one_process_gives_the_same_digits(default: Path) -> None:
    """It serves all nodes, where Ray has a process for every core."""
    alone = thistledown.simulate(num_server_rounds=1)
    assert scores(alone.folder) == scores(default)[:2]

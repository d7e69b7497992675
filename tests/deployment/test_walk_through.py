"""docs/deploy.md, executed as it is written; and the files in deploy/ that it speaks of."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.deployed import APP
from benchmarks.program import BIN, free_port
from thistledown.processes.leftovers import end_processes_in, processes_in

PAGE = (APP / "docs" / "deploy.md").read_text()
BLOCKS = re.findall(r"(?<!-->\n)^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)  # without those that say "not run"
UNITS = sorted((APP / "deploy").glob("*.service"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    end_processes_in(tmp_path)


@pytest.mark.flower
def test_its_commands_run_a_federation(folder: Path) -> None:
    """In one shell, in order; the variables that the page names first are the only ones that are set."""
    (folder / "walk.sh").write_text("set -euo pipefail\n" + "\n".join(BLOCKS))
    own = {"APP": str(APP), "PORT": str(free_port()), "THISTLEDOWN_CACHE": str(folder / "cache")}
    walked = subprocess.run(
        ["bash", "walk.sh"], cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=1500
    )
    logs = "".join(f"--- {path.name}\n{path.read_text()[-2000:]}\n" for path in (folder / "federation").glob("*.log"))
    assert walked.returncode == 0, walked.stdout[-6000:] + walked.stderr[-3000:] + logs
    assert '"status": "finished:completed"' in walked.stdout, walked.stdout + logs
    (place,) = {path.resolve() for path in (folder / "federation" / "outputs").glob("*-rbla")}
    summary = json.loads((place / "summary.json").read_text())
    assert summary["ranks"] == {"clinic-1": 2, "clinic-2": 4, "clinic-3": 8}
    assert summary["status"] == "completed"
    assert summary["metric-source"].startswith("nodes")
    assert not processes_in(folder)


@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_systemd_understands_a_unit(unit: Path, tmp_path: Path) -> None:
    if (systemd := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed, which reads the units in deploy/")
    text = unit.read_text()
    assert "/opt/thistledown/.venv/bin/" in text
    for other in UNITS:
        text_here = other.read_text().replace("/opt/thistledown/.venv/bin", str(BIN))
        (tmp_path / other.name.replace("@.", "@clinic-1.")).write_text(text_here)
    verified = subprocess.run(
        [systemd, "verify", unit.name.replace("@.", "@clinic-1.")], cwd=tmp_path, capture_output=True, text=True
    )
    said = [line for line in verified.stderr.splitlines() if "clinic-1" in line or "thistledown" in line]
    assert not said

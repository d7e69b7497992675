"""`pip install` of what the Hub hands out, in an environment of its own: the command works without a clone.

The wheel is installed into a new environment, and the packages that it depends on are found where these tests find
them, through a .pth file: downloading two gigabytes again would show the same. A .pth file in a folder that comes from
another .pth file is not read, so the clone that is installed there as editable is out of reach.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
from clones import ROOT, clone
from flwr.cli.utils import collect_files, filter_paths_for_publish

from task.device import cores
from thistledown.processes.bundle import app_hash

pytestmark = pytest.mark.slow
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.toml"))


@dataclass(frozen=True)
class Installed:
    """An environment with thistledown in it, and a user: a home with nothing in it, and an empty folder to work in."""

    binaries: Path
    home: Path
    work: Path

    def run(self, program: str, *arguments: str, code: int = 0) -> str:
        own = {"HOME": str(self.home), "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [self.binaries / program, *arguments], cwd=self.work, env=own, capture_output=True, encoding="utf-8"
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that `flwr new` would leave: there is neither a Makefile nor a git repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name, path in filter_paths_for_publish(collect_files(clone(folder / "clone"))).items():
        (folder / "thistledown" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(path), folder / "thistledown" / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "thistledown"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    (site,) = (folder / "env" / "lib").glob("*/site-packages")
    (site / "others.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    pip("--python", str(python), "install", "--no-index", "--no-deps", "--ignore-installed", str(wheel))
    for entry in distribution("flwr").entry_points.select(
        group="console_scripts"
    ):  # they belong beside the interpreter
        script = python.with_name(entry.name)
        script.write_text(f"#!{python}\nfrom {entry.module} import {entry.attr}\n{entry.attr}()\n")
        script.chmod(0o755)
    for name in ("home", "work"):
        (folder / name).mkdir()
    return Installed(python.parent, folder / "home", folder / "work")


def pip(*arguments: str) -> None:
    ran = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_wheel_holds_the_packages_and_what_makes_them_an_app(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    beside = {name for name in names if not name.endswith(".py")}
    assert beside == {
        *(f"thistledown/app/{name}" for name in ("pyproject.toml", "README.md", "LICENSE")),
        *(f"thistledown/app/presets/{preset}.toml" for preset in PRESETS),
    }
    assert {Path(name).parts[0] for name in names} == {"task", "strategies", "server_app", "client_app", "thistledown"}


def test_modules_are_the_installed_ones(installed: Installed) -> None:
    code = "import task, strategies, server_app, client_app, thistledown; print(task.__file__, thistledown.__file__)"
    assert installed.run("python", "-c", code).count(str(installed.binaries.parent)) == 2


def test_a_preset_is_checked_with_the_embedded_base_and_its_data(installed: Installed) -> None:
    said = installed.run("thistledown", "check", "mixed-ranks")
    assert "strategy  rbla" in said
    assert "ranks 2,4,8" in said
    assert "%" not in said.split("data ")[0]  # no library's progress bar while the embedded base is made


def test_it_knows_its_version(installed: Installed) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert installed.run("thistledown", "--version") == f"thistledown {version}\n"


def test_an_unknown_preset_is_answered_with_those_there_are(installed: Installed) -> None:
    assert f"there are {', '.join(PRESETS)}" in installed.run("thistledown", "check", "nothing", code=2)


def test_it_sends_the_bundle_of_the_clone(installed: Installed) -> None:
    """So a node that trusts the one trusts the other."""
    assert installed.run("thistledown", "app", "hash").strip() == app_hash(ROOT)


@pytest.mark.flower
def test_it_runs(installed: Installed) -> None:
    nodes = f"simulation.num-supernodes=2 simulation.num-cpus={cores()} data.train-rows=100"
    options = f"num-server-rounds=1 local-steps=2 {nodes}"
    said = installed.run("thistledown", "run", "mixed-ranks", "-c", options)
    (outputs,) = installed.work.iterdir()
    found = json.loads((outputs / "latest" / "summary.json").read_text())
    assert (found["status"], found["rounds"]) == ("completed", 1), said
    assert (outputs / "latest" / "model").is_dir()
    assert str(ROOT) not in (outputs / "latest" / "summary.json").read_text()
    assert "completed" in installed.run("thistledown", "status")

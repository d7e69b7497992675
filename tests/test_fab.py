"""What is sent to nodes as the app (the FAB): the code of four packages and what names it, nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("task", "strategies", "client_app", "server_app")
BESIDE = {"pyproject.toml", "README.md", "LICENSE"}
LIMIT = 10**6  # bytes; Flower's own is 10 MiB


def unignored() -> list[str]:
    """Files that are there and that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def fab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by `flwr build` from a clone; the folder has a plain name, which Flower insists on."""
    clone = tmp_path_factory.mktemp("fab") / "clone"
    for name in unignored():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    flwr = Path(sys.executable).with_name("flwr")
    own = os.environ | {"FLWR_HOME": str(clone.parent / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
    own["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    built = subprocess.run([flwr, "build"], cwd=clone, env=own, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = clone.glob("*.fab")
    return path


def members(fab: Path) -> set[str]:
    with zipfile.ZipFile(fab) as archive:
        return {name for name in archive.namelist() if not name.startswith(".info/")}


def test_it_holds_code_only(fab: Path) -> None:
    modules = members(fab) - BESIDE
    assert modules
    assert all(Path(name).suffix == ".py" and Path(name).parts[0] in PACKAGES for name in modules)
    assert "pyproject.toml" in members(fab)


def test_every_module_is_in(fab: Path) -> None:
    wanted = {name for name in unignored() if name.endswith(".py") and Path(name).parts[0] in PACKAGES}
    assert wanted <= members(fab)


def test_it_is_small(fab: Path) -> None:
    assert fab.stat().st_size < LIMIT


def test_its_code_needs_nothing_else_of_ours(fab: Path, tmp_path: Path) -> None:
    """The app starts from what is in it: neither tests nor the command line are imported."""
    with zipfile.ZipFile(fab) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, '.'); import server_app, client_app, strategies;"
        "[strategies.strategy_class(name) for name in strategies.names()];"
        "print(server_app.__file__); assert 'thistledown' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(tmp_path))

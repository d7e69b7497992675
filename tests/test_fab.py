"""What is sent to nodes as the app (the FAB): the code of four packages and what names it, nothing else."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from clones import SECRETS, clone, unignored
from flwr.cli.app_cmd.publish import _validate_app_name, _validate_description, _validate_files
from flwr.cli.config_utils import get_fab_metadata
from flwr.cli.install import install_from_fab
from flwr.common.config import validate_config
from flwr.common.constant import FAB_MAX_SIZE
from flwr.supercore.constant import APP_VERSION_PATTERN

PACKAGES = ("task", "strategies", "client_app", "server_app")
BESIDE = {"pyproject.toml", "README.md", "LICENSE"}
LIMIT = FAB_MAX_SIZE // 5  # bytes; every node is sent it


@pytest.fixture(scope="module")
def fab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by `flwr build` from a clone; the folder has a plain name, which Flower insists on."""
    folder = clone(tmp_path_factory.mktemp("fab") / "clone")
    flwr = Path(sys.executable).with_name("flwr")
    own = os.environ | {"FLWR_HOME": str(folder.parent / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
    own["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    built = subprocess.run([flwr, "build"], cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "missing" not in built.stdout  # of what Flower recommends
    (path,) = folder.glob("*.fab")
    return path


@pytest.fixture(scope="module")
def unpacked(fab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a node installs it: Flower compares every file with the bundle's own list of hashes."""
    return install_from_fab(fab.read_bytes(), tmp_path_factory.mktemp("node"))


def members(fab: Path) -> set[str]:
    with zipfile.ZipFile(fab) as archive:
        return {name for name in archive.namelist() if not name.startswith(".info/")}


def test_it_holds_code_only(fab: Path) -> None:
    """No tests, no results, no presets, nothing of the command line."""
    modules = members(fab) - BESIDE
    assert modules
    assert all(Path(name).suffix == ".py" and Path(name).parts[0] in PACKAGES for name in modules)
    assert members(fab) >= BESIDE


def test_every_module_is_in(fab: Path) -> None:
    wanted = {name for name in unignored() if name.endswith(".py") and Path(name).parts[0] in PACKAGES}
    assert wanted <= members(fab)


def test_it_is_small(fab: Path) -> None:
    assert fab.stat().st_size < LIMIT


def test_it_holds_no_secrets(unpacked: Path) -> None:
    assert SECRETS.search(b"token = 'hf_" + 30 * b"a" + b"'")
    assert [path for path in unpacked.rglob("*.*") if path.is_file() and SECRETS.search(path.read_bytes())] == []


def test_it_passes_what_flower_checks_before_it_publishes(fab: Path, unpacked: Path) -> None:
    """The functions are those of `flwr app publish`; tests/test_publish.py runs the command itself on a clone."""
    config = tomllib.loads((unpacked / "pyproject.toml").read_text())
    assert validate_config(config, check_module=True, project_dir=unpacked) == (True, [], [])
    project = config["project"]
    _validate_app_name(project["name"], "[project].name")
    _validate_description(project["description"])  # asks a question where it is too long, which raises here
    _validate_files([path for path in unpacked.rglob("*") if path.is_file()])
    app, version = get_fab_metadata(fab)
    assert app == f"{config['tool']['flwr']['app']['publisher']}/{project['name']}"
    assert re.match(APP_VERSION_PATTERN, version)


@pytest.mark.slow
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

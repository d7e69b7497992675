"""What `thistledown run` hands to Flower: a folder of which Flower bundles the same as of the app's own."""

import hashlib
import re
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from thistledown.main import main
from thistledown.processes.bundle import app_hash, candidates, gathered
from thistledown.processes.client import SuperLinkError
from thistledown.processes.superlink import SuperLink

PROJECT = """
[project]
name = "some"
version = "0.1.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0"]
[tool.flwr.app]
publisher = "somebody"
fab-format-version = 1
flwr-version-target = "1.41.0"
%s
[tool.flwr.app.components]
serverapp = "own.app:server"
clientapp = "own.app:client"
"""
FILES = (
    "LICENSE", "README.md", "own/app.py", "own/deep/er.py", "own/test_app.py", "own/notes.txt", "other.py",
    "own/__pycache__/app.py", ".venv/some.cfg", ".venv/lib/library.py", "venv/library.py",
    "results/some.json", "results/deep/some.json",
)  # fmt: skip


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "some"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / ".gitignore").write_text("# what runs leave\nresults/\n")
    (folder / "linked.py").symlink_to(folder / "other.py")
    return folder


@pytest.mark.parametrize(
    "patterns",
    [
        "",
        'fab-include = ["own/**/*.py", "LICENSE"]',
        'fab-exclude = ["other.py", ".gitignore"]',
        'fab-include = ["**/*.py", "LICENSE"]\nfab-exclude = ["own/test_*.py", "README.md"]',
    ],
)
def test_it_is_flowers_own(app: Path, tmp_path: Path, patterns: str) -> None:
    (app / "pyproject.toml").write_text(PROJECT % patterns)
    place = gathered(app, tmp_path / "app")
    assert build_fab_from_disk(place) == build_fab_from_disk(app)
    assert (place / "own/deep/er.py").read_text() == "# own/deep/er.py\n"
    assert app_hash(app) == hashlib.sha256(build_fab_from_disk(app)).hexdigest()  # which is what `flwr run` sends


def test_ignored_folders_are_not_entered(app: Path) -> None:
    """Every folder has a file of its own, so one that was entered would show."""
    assert {Path(name).parent.as_posix() for name in candidates(app)} == {".", "own", "own/deep"}


def test_an_app_that_flower_refuses_is_named(app: Path) -> None:
    (app / "pyproject.toml").write_text(PROJECT % "fab-include = []")
    superlink = SuperLink()
    try:
        with pytest.raises(SuperLinkError, match=re.escape(f'app in {app}: Property "fab-include"')):
            superlink.submit(app, "", nodes=2, cpus=1, gpus=0.0)
    finally:
        superlink.folder.rmdir()


def test_the_hash_of_a_clone_is_printed(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (app / "pyproject.toml").write_text(PROJECT % "")
    assert main(["app", "hash", str(app)]) == 0
    assert capsys.readouterr().out == f"{app_hash(app)}\n"
    (app / "pyproject.toml").write_text(PROJECT % 'fab-include = ["nothing.py"]')
    assert main(["app", "hash", str(app)]) == 2
    assert "Flower does not accept the app in" in capsys.readouterr().err
    assert main(["app", "hash", str(app / "own")]) == 2

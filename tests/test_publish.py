"""`flwr app publish` of a clone, and `flwr new` by whoever wants the app: Flower's own commands, and a hub of ours."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from clones import ROOT, SECRETS, clone
from flwr.supercore.constant import MAX_FILE_BYTES, MAX_FILE_COUNT, MAX_TOTAL_BYTES
from hub import Hub, logged_in

from thistledown.processes.bundle import app_hash

FLWR = str(Path(sys.executable).with_name("flwr"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME, PUBLISHER = PROJECT["project"]["name"], PROJECT["tool"]["flwr"]["app"]["publisher"]


@dataclass(frozen=True)
class Published:
    """The clone that was published from, the hub that has it, what the command said, and its variables."""

    clone: Path
    hub: Hub
    said: str
    variables: dict[str, str]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("publish")
    with logged_in(folder / "home") as (hub, own):
        here = clone(folder / NAME)
        (here / "outputs" / "some").mkdir(parents=True)  # as after a run, which is nobody's business
        (here / "outputs" / "some" / "summary.json").write_text("{}")
        said = flwr("app", "publish", ".", here=here, variables=own)
        yield Published(here, hub, said, own)


def flwr(*arguments: str, here: Path, variables: dict[str, str]) -> str:
    own = os.environ | variables
    ran = subprocess.run([FLWR, *arguments], cwd=here, env=own, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_the_hub_takes_a_clone(published: Published) -> None:
    files = published.hub.files
    assert "Validation passed" in published.said
    assert "Upload successful" in published.said
    assert {"pyproject.toml", "README.md", "LICENSE", "strategies/fedavg.py", "presets/kilobytes.toml"} <= set(files)
    assert all(content == (published.clone / name).read_bytes() for name, content in files.items())
    assert not any(name.startswith("outputs/") for name in files)
    assert not [name for name, content in files.items() if SECRETS.search(content)]


@pytest.mark.slow
def test_there_is_room_for_more(published: Published) -> None:
    """A hundred files and a quarter of the bytes that Flower takes are left, so that the next strategy ends neither."""
    sizes = [len(content) for content in published.hub.files.values()]
    assert len(sizes) < MAX_FILE_COUNT - 100
    assert sum(sizes) < 0.75 * MAX_TOTAL_BYTES
    assert max(sizes) < MAX_FILE_BYTES


@pytest.mark.slow
def test_whoever_fetches_it_has_the_same_app(published: Published, tmp_path: Path) -> None:
    """The bundle that a run of it sends is that of the clone, to the bit."""
    flwr("new", f"@{PUBLISHER}/{NAME}", here=tmp_path, variables=published.variables)
    flwr("build", here=tmp_path / NAME, variables=published.variables)
    assert app_hash(tmp_path / NAME) == app_hash(published.clone)
    (bundle,) = (tmp_path / NAME).glob("*.fab")
    version = PROJECT["project"]["version"].replace(".", "-")
    assert bundle.name == f"{PUBLISHER}.{NAME}.{version}.{app_hash(published.clone)[:8]}.fab"


def test_the_hub_gets_the_metadata() -> None:
    """Flower's own apps say it at the top of their README in these words."""
    found = re.match(r"---\n(.*?)\n---\n\n# thistledown\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    about = yaml.safe_load(found[1])
    assert set(about) == {"tags", "dataset", "framework"}
    assert all(words and all(isinstance(word, str) for word in words) for words in about.values())


def test_what_a_package_index_shows() -> None:
    project = PROJECT["project"]
    assert project["urls"] == {"Flower Hub": f"https://flower.ai/apps/{PUBLISHER}/{NAME}/"}
    assert (ROOT / project["license"]["file"]).read_text().lstrip().startswith("Apache License")
    assert "License :: OSI Approved :: Apache Software License" in project["classifiers"]
    assert project["keywords"]

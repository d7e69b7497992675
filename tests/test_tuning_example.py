"""A tuning is one file: CONTRIBUTING's example, put where tunings are looked for, passes the tests over all tunings."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from in_process import federate

import task.tunings
from server_app.config import RunConfig, keys
from task.models.model import build
from task.tunings import registry

TESTS = Path(__file__).parent
EXAMPLE = re.compile(r"```python\n(# task/tunings/(\w+)\.py\n.*?)```", re.DOTALL)
TABLE = re.compile(r"```toml\n(\[tool\.flwr\.app\.config\.vera\]\n.*?)```", re.DOTALL)
GUIDE = (TESTS.parent / "CONTRIBUTING.md").read_text()
OVER_ALL = ("test_tunings.py", "test_tuning_rounds.py", "test_tuned_folders.py", "test_parallel_evaluation.py")
ARCHITECTURES = ("vit", "bert", "llama", "gpt2", "mamba", "resnet")  # linear layers of all sorts, and none


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of the guide as a file."""
    example = EXAMPLE.search(GUIDE)
    assert example is not None
    assert len(example[1].splitlines()) <= 80
    place = tmp_path_factory.mktemp("tunings")
    (place / f"{example[2]}.py").write_text(example[1])
    return place


@pytest.fixture
def vera(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its name, while it is a tuning of this process."""
    monkeypatch.setattr(task.tunings, "__path__", [*task.tunings.__path__, str(folder)])
    importlib.invalidate_caches()
    yield "vera"
    del sys.modules["task.tunings.vera"]


def test_it_has_a_name_and_keys(vera: str) -> None:
    assert vera in registry.names()
    assert RunConfig.read({"tuning": "vera", "vera.rank": 4}).task.tuning == registry.load("vera")(rank=4)


def test_its_table_says_what_its_options_say(vera: str) -> None:
    table = TABLE.search(GUIDE)
    assert table is not None
    lines = {k: (v, c) for k, v, c in re.findall(r"^(\w+) = (\S+) +# (.*)$", table[1], re.MULTILINE)}
    assert lines == {
        key.removeprefix("vera."): (str(item.default), item.doc) for key, item in keys().items() if "vera." in key
    }


@pytest.mark.slow
def test_its_projections_are_the_same_on_all_nodes_and_never_sent(vera: str, tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"tuning": "vera", "vera.rank": 4, "num-server-rounds": 2})
    assert outcome.summary["status"] == "completed"
    assert {name.rsplit(".", 1)[-1] for name in outcome.state().tensors} == {
        "vera_lambda_b", "vera_lambda_d", "weight", "bias",
    }  # fmt: skip
    one, other = (dict(build(outcome.base, outcome.task, 0, "cpu").module.named_buffers()) for _ in range(2))
    shared = [name for name in one if ".vera_A." in name or ".vera_B." in name]
    assert shared
    assert all(torch.equal(one[name], other[name]) for name in shared)


@pytest.mark.slow
def test_all_tests_over_tunings_pass_with_it(folder: Path) -> None:
    rows = " or ".join(f"{name}-vera" for name in ARCHITECTURES)
    command = f"{sys.executable} -m pytest -n0 -p no:cacheprovider -p more_tunings".split()
    environment = {**os.environ, "MORE_TUNINGS": str(folder)}
    for files, chosen in ((OVER_ALL, "vera"), (("test_architectures.py",), rows)):
        done = subprocess.run(
            [*command, "-k", chosen, *files], cwd=TESTS, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

"""What `make test` runs at least, and how the tests of one extension are found."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from axes import AXES, extensions
from concerning import concerns
from laws import LAWS
from tiers import DEPLOYMENTS, longest_files_first, unit_of, words

ROOT = Path(__file__).parents[1]


FAST = """
import sys, pytest

class Printed:
    def pytest_collection_finish(self, session):
        print(*(item.nodeid for item in session.items if not item.get_closest_marker("slow")), sep="\\n")

sys.exit(pytest.main(["--collect-only", "-qq", "-n0", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Printed()]))
"""


def printed(*command: str) -> list[str]:
    """Return the lines that Python prints."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_fast_tier_has_every_strategy_law_and_tuning() -> None:
    files = [f"tests/test_{name}.py" for name in ("laws", "federation", "tuning_rounds", "command")]
    fast = printed("-c", FAST, *files)
    laws = [test for test in fast if "::test_declared_laws_hold" in test]
    assert len(laws) == len(extensions("strategy")) * len(LAWS)
    tunings = "|".join(extensions("tuning"))
    for strategy in extensions("strategy"):
        federated = [
            test for test in fast if re.search(rf"test_all_replies_are_good.*\[{strategy}-({tunings})\]", test)
        ]
        assert len(federated) == 1 or strategy == "fedavg", strategy
    for tuning in extensions("tuning"):
        assert [test for test in fast if re.search(rf"test_tuning_rounds.*-{tuning}\]", test)], tuning
    assert sum("test_command.py::test_run_leaves_results" in test for test in fast) == 1


@pytest.mark.slow
def test_the_tests_of_one_extension_are_collected_and_counted() -> None:
    command = ("-m", "pytest", "--collect-only", "-n0", "-p", "no:cacheprovider", "--for", "rbla", "tests/test_laws.py")
    lines = printed(*command)
    found = [line for line in lines if "::" in line]
    assert "tests/test_laws.py::test_laws_are_known[rbla]" in found
    assert not [test for test in found if "test_laws_are_known" in test and "[rbla]" not in test]
    assert f"rbla: {len(found)} tests" in lines


def item(name: str, file: str = "test_x.py", about: tuple[str, ...] = (), **given: object) -> Any:
    """Return what `concerns` looks at of a test."""
    marks = [SimpleNamespace(args=about)] if about else []
    callspec = {"callspec": SimpleNamespace(params=given)} if given else {}
    return SimpleNamespace(path=Path(file), name=name, iter_markers=lambda name: marks, **callspec)


@pytest.mark.parametrize(
    ("test", "concerned"),
    [
        (item("test_a", strategy="lora"), True),
        (item("test_a", strategy="flex-lora"), False),
        (item("test_a", case=("vit", "lora")), True),
        (item("test_a", options={"tuning": "lora"}), True),
        (item("test_a", text="tuning='lora' strategy='rbla'"), True),
        (item("test_a", kind=SimpleNamespace(name="lora")), True),
        (item("test_lora_learns"), True),
        (item("test_flex_lora_learns"), False),
        (item("test_explorations"), False),
        (item("test_a", "test_lora.py"), True),
        (item("test_a", about=("tuning",)), True),
        (item("test_a", about=("strategy",)), False),
        (item("test_a"), False),
    ],
)
def test_what_concerns_lora(test: Any, concerned: bool) -> None:
    assert concerns(test, "lora", {"lora", "tuning"}, ["flex-lora"]) is concerned


def test_an_extension_is_a_file_of_its_axis() -> None:
    assert {"fedavg", "rbla", "sa-fedlora"} <= extensions("strategy")
    assert not extensions("strategy") & {"registry", "base", "--init--"}
    assert all(extensions(axis) for axis in AXES if axis in ("strategy", "wrapper", "tuning"))


def test_words_of_a_parameter() -> None:
    assert set(words([("a", {"b": ["c"]}), SimpleNamespace(name="d"), 7])) == {"a", "b", "c", "d"}


def test_deployments_are_one_unit_and_come_where_all_of_them_together_belong() -> None:
    def slow(nodeid: str, *marks: str) -> Any:
        return SimpleNamespace(nodeid=nodeid, get_closest_marker=lambda mark: mark in marks)

    deployed = [slow(f"{DEPLOYMENTS}/test_{name}.py::test_a", "flower") for name in ("x", "y")]
    others = [slow("tests/test_fast.py::test_a"), *(slow(f"tests/test_z.py::test_{n}", "flower") for n in "abc")]
    items = [others[0], deployed[0], *others[1:], deployed[1]]
    longest_files_first(items)
    assert items == [*others[1:], *deployed, others[0]]
    assert [unit_of(one.nodeid) for one in items] == ["tests/test_z.py"] * 3 + [DEPLOYMENTS] * 2 + [
        "tests/test_fast.py"
    ]

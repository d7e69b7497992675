"""Weak combinations: the table follows from the studies, and `check` names those that a run has."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_published_results import results_of

from thistledown.commands.check import check
from thistledown.estimates.weaknesses import WEAKNESSES, Situation, Weakness, follow, skew
from thistledown.settings import Settings

APP = Path(__file__).parent.parent
each = pytest.mark.parametrize("weakness", WEAKNESSES, ids=lambda one: f"{one.chosen[1] or 'any'} {one.result[0]}")
HERE = Situation("image-classification", "adamw", (), 16, 16, 0.0, None)


def figure(study: str, setting: str, method: str) -> str:
    """Mean and spread over seeds of the last five rounds, as pages have them."""
    scores = results_of(study, setting)[method].values("last-5")
    assert len(scores) >= 3
    return f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}".replace("0.", ".")


@each
def test_figures_are_those_of_the_study(weakness: Weakness) -> None:
    assert weakness.found == figure(weakness.study, *weakness.result)
    assert weakness.better == figure(weakness.study, *weakness.other)
    page = (APP / "docs" / "results" / f"{weakness.study}.md").read_text(encoding="utf-8")
    assert f"\n## {weakness.result[0]}\n" in page


@each
def test_what_is_taken_instead_was_better_with_every_seed(weakness: Weakness) -> None:
    weak, other = (results_of(weakness.study, setting)[method] for setting, method in (weakness.result, weakness.other))
    assert all(one < two for one, two in zip(weak.values("last-5"), other.values("last-5"), strict=True))


def explained(tmp_path: Path, *overrides: str) -> list[str]:
    lines: list[str] = []
    check(Settings.read(APP, None, overrides, tmp_path), lines.append)
    return [line for line in lines if " weak " in line]


def test_check_names_a_weak_strategy(tmp_path: Path) -> None:
    ragged = "lora.ranks='2,4,8'"
    [said] = explained(tmp_path, f"strategy='rbla' {ragged}")
    assert said == (
        "notice    strategy = 'rbla' was weak on skewed rows with ranks that do not grow with a node's rows: "
        ".651 ± .081, against .716 ± .074 with strategy = 'zero-pad' (docs/results/rbla.md#minilm)"
    )
    assert not explained(tmp_path, f"strategy='zero-pad' {ragged}")
    assert not explained(tmp_path, f"strategy='rbla' {ragged} data.partitioner='iid'")


def test_check_is_silent_about_the_default(tmp_path: Path) -> None:
    assert not explained(tmp_path)


@pytest.mark.parametrize(
    ("value", "situation", "said"),
    [
        ("zero-pad", {"skew": 0.36, "follow": 1.0}, True),
        ("zero-pad", {"skew": 0.36, "follow": 0.0}, False),
        ("rbla", {"skew": 0.36, "follow": 1.0}, False),
        ("ferret", {}, True),
        ("ferret", {"optimizer": "sgd"}, False),
        ("ia3", {}, True),
        ("ia3", {"kind": "text-classification"}, False),
        ("bias", {"kind": "text-classification"}, True),
        ("bias", {"kind": "text-classification", "skew": 0.6}, False),
        ("bias", {"kind": "causal-lm", "wrappers": ("central-privacy",)}, True),
        ("", {"a_round": 2, "skew": 0.6}, True),
        ("", {"a_round": 2}, False),
        ("", {"a_round": 2, "nodes": 2, "skew": 0.6}, False),
    ],
)
def test_a_weakness_is_of_its_situation(value: str, situation: dict[str, Any], said: bool) -> None:
    here = replace(HERE, **situation)
    assert any(weakness.when(here) for weakness in WEAKNESSES if weakness.chosen[1] == value) == said


def test_skew_is_the_distance_from_the_shares_of_all() -> None:
    labels = np.array([0, 0, 1, 1])
    assert skew(labels, [np.array([0, 2]), np.array([1, 3])]) == 0
    assert skew(labels, [np.array([0, 1]), np.array([2, 3])]) == 0.5
    assert skew(labels, [np.array([0, 1, 2]), np.array([3])]) == pytest.approx(0.75 * (1 / 6) + 0.25 * 0.5)


def test_ranks_follow_rows_or_not() -> None:
    assert follow([2, 2, 2], [1, 2, 3]) is None
    assert follow([2, 4, 8], [10, 20, 21]) == pytest.approx(1)
    assert follow([8, 4, 2], [10, 20, 21]) == pytest.approx(-1)
    assert follow([2, 4, 8], [5, 5, 5]) == 0
    assert follow([2, 2, 4, 4], [1, 2, 3, 4]) == pytest.approx(2 / 5**0.5)

"""The page of a study: its tables and its plots. `test_published_results.py` has those in the repository."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from studies import HEAD, HERE, OURS, STUDY, TINY, completed, measured

from benchmarks import pages, records
from benchmarks.derived import derive
from benchmarks.figures import Outcome, paired
from benchmarks.savings import INITIATING
from benchmarks.study import Measured, Run, Study
from thistledown.comparison.significance import chance, verdict


def content(study: Study, result: Callable[[Run], Measured], folder: Path) -> dict[str, Any]:
    path = folder / "some.json"
    records.save(path, study, completed(study, result))
    return derive(*records.read(path))


def row(page: str, start: str) -> list[str]:
    """The cells after the first of the first table line that begins so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.split("|")][2:-1]


def test_a_page_has_means_spreads_and_who_is_best(tmp_path: Path) -> None:
    """ours: .6 .7 .8 after the last of two rounds, and half of that before; head: .2 .2 .2."""
    page = pages.page(
        content(STUDY, lambda run: measured(0.6 + run.seed / 10 if run.method == "ours" else 0.2), tmp_path)
    )
    assert row(page, "ours") == [
        "**2.0 (2, 2, 2)**", "**.525 ± .075**", ".700 ± .100", "0.0", "0.0", "0.25", "0.001", "3"
    ]  # fmt: skip
    assert row(page, "head")[:3] == ["> 2, > 2, > 2", ".150 ± .000", ".200 ± .000"]
    assert page.index("| ours |") < page.index("| head |")
    comparison = page[page.index("against ours") :]
    assert row(comparison, "head") == ["-.375 ± .043", ".013", "behind", "", "x 1.00"]
    assert "Somebody said so." in page
    assert "## Runs that failed\n\nNone." in page
    assert "`.venv/bin/thistledown run -c" in page


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (0.42, "Not ahead of head: ours (not separable)."),
        (0.1, "Not ahead of head: ours (behind)."),
        (0.9, "All others are ahead of head."),
    ],
)
def test_a_page_says_what_is_not_above_the_floor(first: float, said: str, tmp_path: Path) -> None:
    """head: .5 with every seed; ours begins at `first` and gains .1 a seed."""
    found = content(
        replace(STUDY, floor="head"),
        lambda run: measured(first + run.seed / 10 if run.method == "ours" else 0.5),
        tmp_path,
    )
    assert said in pages.page(found)
    assert "ahead of head" not in pages.page(found | {"floor": ""})


def test_a_page_says_whose_rates_a_setting_uses(tmp_path: Path) -> None:
    other = replace(TINY, name="other", options={**TINY.options, "local-steps": 2}, rates_of=TINY)
    page = pages.page(content(replace(STUDY, settings=(TINY, other)), lambda run: measured(run.rate), tmp_path))
    assert page.count("Learning rates are those that were found best in tiny.") == 1
    assert page.count("| tiny | ours |") == 1
    assert "| other | ours |" not in page
    assert f"Measured on {HERE}." in page


def test_a_page_shows_a_search_among_shares(tmp_path: Path) -> None:
    other = replace(TINY, name="other", options={**TINY.options, "local-steps": 2}, rates_of=TINY, shares=(1.0, 1 / 3))
    page = pages.page(content(replace(STUDY, settings=(TINY, other)), lambda run: measured(run.rate), tmp_path))
    assert "Learning rates are searched again: those that were found best in tiny, times 1 or 0.333." in page
    assert row(page[page.index("| other |") :], "other") == [
        "ours", "**0.01: .007**, 0.003333: .003, at an end of what was tried"
    ]  # fmt: skip


def test_a_method_whose_runs_all_failed_has_no_numbers(tmp_path: Path) -> None:
    page = pages.page(content(STUDY, lambda run: measured(error="it broke" if run.method == "head" else ""), tmp_path))
    assert row(page, "head") == [*[""] * 7, "failed at every rate"]
    assert "- tiny, head, seed 0, rate 0.01: it broke" in page
    assert "0.01: failed" in page


def test_a_verdict_is_that_of_a_paired_t_test() -> None:
    clear, wide, even = [0.10, 0.12, 0.11], [0.30, 0.02, 0.05], [0.0, 0.0, 0.0]
    for differences in (clear, wide):
        assert chance(differences) == pytest.approx(ttest_1samp(differences, 0.0).pvalue, rel=1e-9)
    assert [verdict(d, lowest=False) for d in (clear, wide, even, [0.1])] == [
        "ahead", "not separable", "not separable", "one seed",
    ]  # fmt: skip
    assert verdict([-d for d in clear], lowest=False) == "behind"
    assert verdict(clear, lowest=True) == "behind"
    assert verdict([0.1, 0.1, 0.1], lowest=False) == "ahead"


def test_equals_are_separated_in_one_of_twenty_comparisons() -> None:
    """What a level of 5 % promises; the rule of one pooled standard error separated 37 %."""
    drawn = np.random.default_rng(0).normal(size=(2000, 3))
    separated = sum(verdict(list(row), lowest=False) != "not separable" for row in drawn)
    assert 0.035 < separated / 2000 < 0.065


def test_pairs_are_those_of_a_seed() -> None:
    def outcome(**values: float) -> Outcome:
        runs = [{"seed": int(seed[1:]), "last-5": value} for seed, value in values.items()]
        return Outcome({"metric": "accuracy"}, "any", 0.1, True, runs, 0)

    assert paired(outcome(s0=0.5, s1=0.7, s2=0.9), outcome(s2=0.6, s0=0.4)) == pytest.approx([0.1, 0.3])


def test_a_search_whose_best_rate_is_at_an_end_goes_on() -> None:
    """By the ratio of its last two rates, until a rate inside is best or three were added at that end."""
    setting, method = TINY, TINY.methods[0]
    study = replace(STUDY, settings=(setting,), extensions=3)
    declared = setting.declared(method)
    assert len(declared) > 1

    def scored(best: float) -> dict[str, Measured]:
        """Scores that fall with the distance from `best`, of as many runs as the study asks for."""
        done: dict[str, Measured] = {}
        while True:
            wanted = [run for run in study.runs(done) if run.seed == study.seeds[0] and run.key not in done]
            wanted = [run for run in wanted if run.method == method.name]
            if not wanted:
                return done
            for run in wanted:
                score = -abs(math.log(run.rate / best))
                done[run.key] = measured(chosen_by=score)

    step = max(declared) / sorted(declared)[-2]
    done = scored(max(declared) * step)
    assert sorted(study.grid(setting, method, done)) == pytest.approx(
        [*sorted(declared), max(declared) * step, max(declared) * step**2]
    )
    assert study.chosen(setting, method, done) == pytest.approx(max(declared) * step)
    assert study.settled(setting, method, done)
    far = scored(max(declared) * 1e9)
    assert len(study.grid(setting, method, far)) == len(declared) + 3
    assert study.settled(setting, method, far)


def test_of_a_loss_less_is_better(tmp_path: Path) -> None:
    """A setting that goes by the loss: the rate, the order of methods and the rounds to the target follow."""
    setting = replace(TINY, metric="loss", target=1.0, level=lambda: ("guessing", 2.3))
    study = replace(STUDY, settings=(setting,))

    def result(run: Run) -> Measured:
        found = measured(0.5)
        last = {"ours": 0.5, "head": 2.0}[run.method] + run.rate
        return found | {"loss": [3.0, 1.5 * last, last], "chosen-by": [3.0, 1.5 * last, last]}

    found = content(study, result, tmp_path)
    assert {search["method"]: search["chosen"] for search in found["search"]} == {
        setting.methods[0].name: min(setting.declared(setting.methods[0])),
        setting.methods[1].name: min(setting.declared(setting.methods[1])),
    }
    page = pages.page(found)
    assert page.index("| ours |") < page.index("| head |")
    assert row(page, "head")[0] == "> 2, > 2, > 2"
    assert "guessing, 2.300" in page
    assert "accuracy, last 5" in page
    assert row(page, "head")[3] == ".375 ± .000"
    assert "mean validation loss" in page


def test_savings_are_counted_in_three_ways(tmp_path: Path) -> None:
    """Full: 1,000 each way in 4 rounds. Annealed: one such round, then 100 each way, and 500 once for the hand-over."""

    def result(run: Run) -> Measured:
        found = measured(rounds=4)
        annealed = run.method == "annealed"
        found["parameters_up"] = [0, 1000, *([100] * 3 if annealed else [1000] * 3)]
        found["parameters_down"] = [0, 1000, *([600, 100, 100] if annealed else [1000] * 3)]
        return found

    method = replace(OURS, name="annealed", options={**OURS.options, INITIATING: 1})
    setting = replace(TINY, methods=(HEAD, method))
    study = replace(STUDY, settings=(setting,), reference="head", savings=True)
    page = pages.page(content(study, result, tmp_path))
    saved = page[page.index("parameters saved against head") :]
    expected = [1 - 600 / 6000, 1 - 2600 / 8000, 1 - 3100 / 8000]
    assert row(saved, "annealed") == [*(f"{100 * share:.2f} %" for share in expected), "0.00 M"]


def test_equal_numbers_draw_equal_files(tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        content(STUDY, lambda run: measured(0.5 + run.seed / 10), tmp_path / name)
        pages.write(tmp_path / name / "some.json")
        drawn.append((tmp_path / name / "some-tiny.svg").read_bytes())
    assert drawn[0] == drawn[1]


def test_no_two_of_many_methods_are_drawn_alike(tmp_path: Path) -> None:
    methods = tuple(replace(OURS, name=f"method-{number}") for number in range(12))
    study = replace(STUDY, settings=(replace(TINY, methods=methods),), reference="method-0")
    content(study, lambda run: measured(0.5), tmp_path)
    pages.write(tmp_path / "some.json")
    styles = re.findall(r'<path [^>]*style="(fill: none; stroke[^"]*)"', (tmp_path / "some-tiny.svg").read_text())
    lines = Counter(style for style in styles if "stroke-width: 1.5" in style)
    assert len(lines) == 12
    assert set(lines.values()) == {3}  # two panels and the legend

"""The page of a study: its tables and its plots. `test_published_results.py` has those in the repository."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import HEAD, HERE, OURS, STUDY, TINY, completed, measured

from benchmarks import pages, records
from benchmarks.derived import derive
from benchmarks.figures import difference, verdict
from benchmarks.savings import INITIATING
from benchmarks.study import Measured, Run, Study


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
    assert row(comparison, "head") == ["-.375 ± .043", "behind", "", "x 1.00"]
    assert "Somebody said so." in page
    assert "## Runs that failed\n\nNone." in page
    assert "`.venv/bin/thistledown run -c" in page


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (0.3, "Not above head by more than one error: ours (behind)."),
        (0.42, "Not above head by more than one error: ours (within one error)."),
        (0.6, "All others are above head."),
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
    assert "above head" not in pages.page(found | {"floor": ""})


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
    assert row(page[page.index("| other |") :], "other") == ["ours", "**0.01: .007**, 0.003333: .003"]


def test_a_method_whose_runs_all_failed_has_no_numbers(tmp_path: Path) -> None:
    page = pages.page(content(STUDY, lambda run: measured(error="it broke" if run.method == "head" else ""), tmp_path))
    assert row(page, "head") == [*[""] * 7, "failed at every rate"]
    assert "- tiny, head, seed 0, rate 0.01: it broke" in page
    assert "0.01: failed" in page


def test_differences_carry_the_errors_of_both_means() -> None:
    gap, error = difference([0.6, 0.7, 0.8], [0.5, 0.5, 0.5])
    assert (round(gap, 6), round(error, 6)) == (0.2, round(0.1 / 3**0.5, 6))
    said = ["ahead", *["within one error"] * 2, "behind"]
    assert [verdict(g, 0.1, "accuracy") for g in (0.2, 0.1, -0.1, -0.2)] == said
    assert [verdict(g, 0.1, "loss") for g in (0.2, 0.1, -0.1, -0.2)] == said[::-1]
    assert verdict(0.2, float("nan"), "accuracy") == "one seed"


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

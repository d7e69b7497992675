"""Studies: which runs follow from what is declared, that a real one resumes and records failures, and its page."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import command, federation, pages, records
from benchmarks.command import Progress
from benchmarks.federation import Federation, NotMeasured
from benchmarks.figures import difference, verdict
from benchmarks.savings import INITIATING
from benchmarks.study import LAST, Measured, Method, Run, Setting, Study, run_of

OURS = Method("ours", {"strategy": "fedavg", "tuning": "lora"})
HEAD = Method("head", {"strategy": "fedavg", "tuning": "head"})
TINY = Setting(
    "tiny",
    "Two nodes, one step.",
    {"num-server-rounds": 1, "local-steps": 1, "simulation.num-supernodes": 2},
    (OURS, HEAD),
    {"lora": (0.001, 0.01), "head": (0.01,)},
    target=0.5,
)
HERE = "2 cores of some kind"
STUDY = Study("some", "A study", ("About it.",), ("Somebody said so.",), (TINY,), "ours")


def measured(accuracy: float = 0.5, *, chosen_by: float | None = None, error: str = "", rounds: int = 2) -> Measured:
    """A run of two rounds whose accuracy grows to `accuracy`."""
    by_round = [0.1, *(accuracy * n / rounds for n in range(1, rounds + 1))]
    numbers: dict[str, list[Any]] = {name: [0, *[1000] * rounds] for name in ("bytes_up", "bytes_down")}
    numbers |= {name: [0, *[100] * rounds] for name in ("parameters_up", "parameters_down")}
    chosen = by_round if chosen_by is None else [chosen_by] * len(by_round)
    inexactness = [None, *[0.25] * rounds]
    quality = {"accuracy": by_round, "chosen-by": chosen, "loss": [1.0] * len(by_round), "inexactness": inexactness}
    return {"error": error, "seconds": 3.0, "on": HERE, **quality, **numbers}


def completed(study: Study, result: Callable[[Run], Measured]) -> dict[str, Measured]:
    """All runs that a study comes to, with what `result` says of each."""
    done: dict[str, Measured] = {}
    while pending := [run for run in study.runs(done) if run.key not in done]:
        done |= {run.key: result(run) for run in pending}
    return done


def names(study: Study, done: dict[str, Measured]) -> list[tuple[str, int, float]]:
    return [(run.method, run.seed, run.rate) for run in study.runs(done)]


# ------------------------------------------------------------------------------------------- what is run
def test_first_the_search_then_the_other_seeds_at_the_rate_that_won() -> None:
    search = [("ours", 0, 0.001), ("ours", 0, 0.01), ("head", 0, 0.01)]
    assert names(STUDY, {}) == search
    done = completed(STUDY, lambda run: measured(run.rate))
    rest = [(method, seed, 0.01) for seed in (1, 2) for method in ("ours", "head")]
    assert names(STUDY, done) == search + rest
    assert len(done) == STUDY.size


def test_a_rate_is_chosen_by_validation_and_a_failed_run_loses() -> None:
    by_validation = completed(STUDY, lambda run: measured(run.rate, chosen_by=1 - run.rate))
    assert STUDY.chosen(TINY, OURS, by_validation) == 0.001
    failing = completed(STUDY, lambda run: measured(0.9, error="" if run.rate == 0.001 else "nan"))
    assert STUDY.chosen(TINY, OURS, failing) == 0.001
    assert STUDY.chosen(TINY, HEAD, failing) is None
    assert [run for run in names(STUDY, failing) if run[0] == "head"] == [("head", 0, 0.01)]


def test_only_the_last_rounds_choose() -> None:
    early, late = measured(), measured()
    early["chosen-by"], late["chosen-by"] = [0.0, 1.0, *[0.2] * LAST], [0.0, 0.0, *[0.3] * LAST]
    slow, fast = (run_of(TINY, OURS, 0, rate) for rate in (0.001, 0.01))
    assert STUDY.chosen(TINY, OURS, {slow.key: early, fast.key: late}) == 0.01


def test_a_run_is_known_by_its_options() -> None:
    other = replace(TINY, options={**TINY.options, "local-steps": 2})
    assert run_of(TINY, OURS, 0, 0.01).key != run_of(other, OURS, 0, 0.01).key
    assert run_of(TINY, OURS, 0, 0.01).key == run_of(replace(TINY, about="in other words"), OURS, 0, 0.01).key


def test_a_setting_may_take_over_rates() -> None:
    """Nothing is searched in it, all seeds are run, and asking for it alone looks up what was found."""
    other = replace(TINY, name="other", options={**TINY.options, "local-steps": 2}, rates_of=TINY)
    both = replace(STUDY, settings=(TINY, other))
    done = completed(both, lambda run: measured(run.rate))
    own = [run for run in both.runs(done) if run.setting == "other"]
    assert sorted((run.method, run.seed, run.rate) for run in own) == [
        (method, seed, 0.01) for method in ("head", "ours") for seed in (0, 1, 2)
    ]
    assert len(done) == both.size == STUDY.size + 6
    assert list(command.selected(both, ["other"]).runs(done)) == own


def test_what_is_searched_may_be_another_option() -> None:
    method = Method("clipped", {**OURS.options, "learning-rate": 0.1}, rates=(0.5, 1.0), searched="max-grad-norm")
    runs = list(replace(STUDY, settings=(replace(TINY, methods=(method,)),)).runs({}))
    assert [(run.options["max-grad-norm"], run.options["learning-rate"]) for run in runs] == [(0.5, 0.1), (1.0, 0.1)]


def test_tied_rates_and_seeds_are_filled_in() -> None:
    method = replace(OURS, tied={"other-rate": 0.1})
    run = run_of(replace(TINY, options={"model.name": "base-{seed}"}), method, 3, 0.5)
    assert run.arguments[-1] == (
        "model.name='base-3' strategy='fedavg' tuning='lora' learning-rate=0.5 other-rate=0.05 seed=3"
    )


# ------------------------------------------------------------------------------------------- the file
def test_what_is_saved_is_known_again_and_what_is_not_declared_goes(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    done = completed(STUDY, lambda run: measured(run.rate))
    records.save(path, STUDY, done)
    assert records.load(path) == done
    alone = replace(STUDY, settings=(replace(TINY, methods=(HEAD,)),))
    records.save(path, alone, records.load(path))
    assert len(records.load(path)) == 3
    content = json.loads(path.read_text())
    assert content["runs"][0]["command"].startswith('.venv/bin/thistledown run -c "num-server-rounds=1 local-steps=1 ')
    assert content["runs"][0]["measured"]["on"] == HERE
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.json"]


# ------------------------------------------------------------------------------------------- the command
def exit_code(study: Study, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results", *arguments])
    return command.main(study)


def test_it_says_what_is_missing_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = replace(STUDY, settings=(replace(TINY, assets=("../no/such/data",)),))
    strange = replace(STUDY, settings=(replace(TINY, methods=(Method("x", {"strategy": "x", "tuning": "lora"}),)),))
    for study, arguments, said in [
        (lacking, (), "setting tiny needs ../no/such/data"),
        (strange, (), "tiny, x: there is no strategy 'x'"),
        (STUDY, ("--only", "theirs"), "there are tiny, head, ours"),
        (STUDY, ("--jobs", "0"), "--jobs 0: this machine has"),
    ]:
        assert exit_code(study, monkeypatch, *arguments) == command.WRONG
        assert said in capsys.readouterr().err


def test_part_of_a_study() -> None:
    two = replace(STUDY, settings=(TINY, replace(TINY, name="other")))
    part = command.selected(two, ["other", "head"])
    assert [(setting.name, method.name) for setting, method in part.contests()] == [("other", "head")]
    assert command.selected(two, []) == two


# ------------------------------------------------------------------------------------------- real runs
def test_what_does_not_begin_is_not_held_against_a_method(tmp_path: Path) -> None:
    run = run_of(replace(TINY, options={"no-such-key": 1}), OURS, 0, 0.01)
    federation = Federation(run, tmp_path / "out", cpus=1)
    try:
        while not federation.over():
            time.sleep(0.1)
    finally:
        federation.stop()
    with pytest.raises(NotMeasured, match=r"(?s)exit code 2.*no-such-key"):
        federation.measured()


@pytest.mark.flower
def test_a_study_records_a_failure_and_runs_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two federations: one learns, the head of the other explodes."""
    setting = replace(TINY, rates={"lora": (0.01,), "head": (3e37,)})
    study, path = replace(STUDY, settings=(setting,), seeds=(0,)), tmp_path / "some.json"
    progress = Progress(study, study, path)
    progress.run(min(2, os.cpu_count() or 1), tmp_path / "outputs", keep=True)
    assert progress.ran == 2
    said = capsys.readouterr().out
    assert "tiny head seed 0 rate 3e+37: failed: 1 failed rounds in a row" in said
    assert "'classifier.weight' holds 3e+37" in said
    assert "[2/2]" in said

    learned, exploded = json.loads(path.read_text())["runs"]
    assert (learned["status"], exploded["status"]) == ("completed", "failed")
    assert exploded["final"] is None
    numbers = learned["measured"]
    assert len(numbers["accuracy"]) == 2
    assert 0 < numbers["accuracy"][1] < 1
    assert numbers["parameters_up"][1] == 2 * 29_322
    assert numbers["bytes_up"][1] > 4 * numbers["parameters_up"][1]
    assert not list((tmp_path / "outputs").glob("*/*/model"))
    assert list((tmp_path / "outputs").glob("*/*/metrics.jsonl"))

    again = Progress(study, study, path)
    again.run(1, tmp_path / "outputs", keep=True)
    assert again.ran == 0
    assert again.done == progress.done
    pages.write(path)
    assert "'classifier.weight' holds 3e+37" in path.with_suffix(".md").read_text()
    assert "<svg" in (tmp_path / "some-tiny.svg").read_text()


# ------------------------------------------------------------------------------------------- the page
def content(study: Study, result: Callable[[Run], Measured], folder: Path) -> dict[str, Any]:
    path = folder / "some.json"
    records.save(path, study, completed(study, result))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_loss_that_is_not_finite_is_a_failure() -> None:
    lines = [{"round": number, "loss": loss} for number, loss in enumerate((1.0, 2.0, math.nan, math.inf))]
    assert federation._not_finite(lines) == "the loss is not finite from round 2 on"
    assert not federation._not_finite(lines[:2])


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


def test_a_page_says_whose_rates_a_setting_uses(tmp_path: Path) -> None:
    other = replace(TINY, name="other", options={**TINY.options, "local-steps": 2}, rates_of=TINY)
    page = pages.page(content(replace(STUDY, settings=(TINY, other)), lambda run: measured(run.rate), tmp_path))
    assert page.count("Learning rates are those that were found best in tiny.") == 1
    assert page.count("| tiny | ours |") == 1
    assert "| other | ours |" not in page
    assert f"Measured on {HERE}." in page


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
        setting.methods[0].name: min(setting.grid(setting.methods[0])),
        setting.methods[1].name: min(setting.grid(setting.methods[1])),
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


COMMITTED = sorted(records.RESULTS.glob("*.json"))


@pytest.mark.skipif(not COMMITTED, reason="docs/results has no study")
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_pages_are_those_of_their_numbers(path: Path) -> None:
    assert path.with_suffix(".md").read_text() == pages.page(json.loads(path.read_text()))

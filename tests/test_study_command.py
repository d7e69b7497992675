"""The command of a study: what it refuses, and real runs that are recorded, failures too, and not run twice."""

import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from studies import OURS, STUDY, TINY

from benchmarks import command, federation, pages, records
from benchmarks.command import Progress
from benchmarks.derived import derive
from benchmarks.federation import Federation, NotMeasured
from benchmarks.study import Method, Study, run_of
from task.device import cores


def exit_code(study: Study, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results", *arguments])
    return command.main(study)


@pytest.mark.slow
def test_it_says_what_is_missing_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = replace(STUDY, settings=(replace(TINY, assets=("../no/such/data",)),))
    strange = replace(STUDY, settings=(replace(TINY, methods=(Method("x", {"strategy": "x", "tuning": "lora"}),)),))
    crowded = replace(STUDY, settings=(replace(TINY, options={**TINY.options, "simulation.num-supernodes": 500}),))
    for study, arguments, said in [
        (lacking, (), "setting tiny needs ../no/such/data"),
        (strange, (), "tiny, x, seed 0: there is no strategy 'x'"),
        (crowded, (), "tiny, ours, seed 2: 750 rows cannot be divided among 500 nodes"),
        (STUDY, ("--only", "theirs"), "there are tiny, head, ours"),
        (STUDY, ("--jobs", "0"), "--jobs 0: this process may use"),
    ]:
        assert exit_code(study, monkeypatch, *arguments) == command.WRONG
        assert said in capsys.readouterr().err


def test_part_of_a_study() -> None:
    two = replace(STUDY, settings=(TINY, replace(TINY, name="other")))
    part = command.selected(two, ["other", "head"])
    assert [(setting.name, method.name) for setting, method in part.contests()] == [("other", "head")]
    assert command.selected(two, []) == two


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_study_records_a_failure_and_runs_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two federations: one learns, the head of the other explodes."""
    setting = replace(TINY, rates={"lora": (0.01,), "head": (3e37,)})
    study, path = replace(STUDY, settings=(setting,), seeds=(0,)), tmp_path / "some.json"
    progress = Progress(study, study, path, "local")
    progress.run(min(2, cores()), tmp_path / "outputs", keep=True)
    assert progress.ran == 2
    said = capsys.readouterr().out
    assert "tiny head seed 0 rate 3e+37: failed: 1 failed rounds in a row" in said
    assert "'classifier.weight' holds 3e+37" in said
    assert "[2/2]" in said

    learned, exploded = derive(*records.read(path))["runs"]
    assert (learned["status"], exploded["status"]) == ("completed", "failed")
    assert exploded["final"] is None
    numbers = learned["measured"]
    assert len(numbers["accuracy"]) == 2
    assert 0 < numbers["accuracy"][1] < 1
    assert numbers["parameters_up"][1] == 2 * 29_322
    assert numbers["bytes_up"][1] > 4 * numbers["parameters_up"][1]
    assert not list((tmp_path / "outputs").glob("*/*/model"))
    assert list((tmp_path / "outputs").glob("*/*/metrics.jsonl"))

    again = Progress(study, study, path, "local")
    again.run(1, tmp_path / "outputs", keep=True)
    assert again.ran == 0
    assert again.done == progress.done
    pages.write(path)
    assert "'classifier.weight' holds 3e+37" in path.with_suffix(".md").read_text()
    assert "<svg" in (tmp_path / "some-tiny.svg").read_text()


def test_a_loss_that_is_not_finite_is_a_failure() -> None:
    lines = [{"round": number, "loss": loss} for number, loss in enumerate((1.0, 2.0, math.nan, math.inf))]
    assert federation._not_finite(lines) == "the loss is not finite from round 2 on"
    assert not federation._not_finite(lines[:2])

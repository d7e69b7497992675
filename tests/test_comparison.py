"""`thistledown compare`: entries over one split, baselines, what is found, and a folder that is its memory."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser, needs_browser
from in_process import Outcome, federate

from server_app.results.endings import lines_in, summary_of
from server_app.results.measure import measure_named
from server_app.results.split import read_split
from server_app.resuming import alone
from task.schema import ConfigError
from thistledown.comparison import work
from thistledown.comparison.compare import PAGE, Asked, _findings, compare
from thistledown.comparison.curves import Curve, Side, order, paired, target_of
from thistledown.comparison.entries import Entry, differing, entries
from thistledown.comparison.findings import Findings, markdown, spread
from thistledown.comparison.jobs import ALONE, CENTRAL, FEDERATED, Job, baselines, federated
from thistledown.comparison.page import comparison_page
from thistledown.comparison.workers import Worker

ACCURACY, LOSS = measure_named("accuracy"), measure_named("loss")
TINY = (
    "num-server-rounds=1 simulation.num-supernodes=2 local-steps=1 batch-size=8 tuning=head data.train-rows=60 "
    "data.validation-rows=20 data.test-rows=20 data.partitioner=iid"
)


def curve(seed: int, *scores: float | None, error: str = "", metric: str = "accuracy") -> Curve:
    """A run that sends 10 bytes and takes 2 seconds a round."""
    count = len(scores)
    axes = {
        "round": list(range(count)),
        "bytes": [10 * n for n in range(count)],
        "seconds": [2.0 * n for n in range(count)],
    }
    split = {"nodes": {"a": [3, 1], "b": [0, 6]}}
    return Curve(seed, metric, error, axes, {name: list(scores) for name in ("accuracy", "loss")}, split)


def side(name: str, *finals: float) -> Side:
    """A side whose runs, with seeds 0, 1, ..., begin at .1 and have a quality of `finals`."""
    return Side(name, [curve(seed, 0.1, final, final) for seed, final in enumerate(finals)])


# ------------------------------------------------------------------------------- what is found
def test_quality_is_the_mean_of_the_last_measured_rounds() -> None:
    assert curve(0, 0.9, 0.1, None, 0.2, 0.3, 0.4, 0.5, 0.6).quality == pytest.approx(0.4)
    assert curve(0, 0.9).quality is None
    assert curve(0, 0.1, 0.2, error="it broke").quality is None


def test_a_target_is_reached_in_a_round_with_its_bytes_and_seconds() -> None:
    assert curve(0, 0.9, 0.3, None, 0.6, 0.2).reached(0.6, ACCURACY) == {"round": 3, "bytes": 30, "seconds": 6.0}
    assert curve(0, 0.9, 0.3).reached(0.5, ACCURACY) is None
    assert curve(0, 0.1, 0.7, 0.4).reached(0.5, LOSS) == {"round": 2, "bytes": 20, "seconds": 4.0}


def test_the_target_is_most_of_what_the_best_gains() -> None:
    assert target_of([side("a", 0.5), side("b", 0.6, 0.8)], ACCURACY) == pytest.approx(0.1 + 0.9 * 0.6)
    assert target_of([side("a", 0.05)], ACCURACY) is None
    assert target_of([side("a", 0.05)], LOSS) == pytest.approx(0.1 - 0.9 * 0.05)


def test_a_table_has_the_best_first_and_says_what_is_separable() -> None:
    sides = [side("first", 0.50, 0.52, 0.51), side("better", 0.60, 0.63, 0.61), side("same", 0.40, 0.70, 0.45)]
    found = Findings(sides, ACCURACY, 0.6, {})
    head, *rows = found.table()
    assert [row[0] for row in rows] == ["better", "same", "first", "*before training*"]
    better, same, first, base = (dict(zip(head, row, strict=True)) for row in rows)
    assert better["accuracy"] == "0.613 ± 0.015"
    assert (better["less first"], better["verdict"]) == ("+0.103", "ahead")
    assert same["verdict"] == "not separable"
    assert (first["less first"], first["p"], first["verdict"]) == ("", "", "")
    assert better["to target"] == "1.0 rounds, 10 B, 2.0 s"
    assert same["to target"] == "reached in 1 of 3 runs"
    assert base["accuracy"] == "0.100 ± 0.000"
    assert found.headline() == ("better has the best accuracy, 0.613 ± 0.015; ahead of first; not separable from same.")


def test_of_a_loss_less_is_better() -> None:
    found = Findings([side("first", 0.50, 0.52, 0.51), side("lower", 0.40, 0.43, 0.41)], LOSS, None, {})
    assert [row[0] for row in found.table()[1:3]] == ["lower", "first"]
    assert found.headline().startswith("lower has the best loss, 0.413 ± 0.015; ahead of first")


def test_a_run_that_failed_counts_as_failed() -> None:
    broken = Side("broken", [curve(0, 0.1, 0.2, error="it broke"), curve(1, 0.1, 0.2)])
    row = dict(zip(*(Findings([broken], ACCURACY, 0.2, {}).table()[:2]), strict=True))
    assert (row["runs"], row["accuracy"], row["to target"]) == ("1, 1 failed", "0.200", "reached in 1 of 2 runs")
    assert Findings([Side("gone", [])], ACCURACY, None, {}).headline() == "No run completed."
    assert [one.name for one in order([Side("gone", []), broken], ACCURACY)] == ["broken", "gone"]


def test_a_side_of_which_no_run_began_has_no_costs() -> None:
    sides = [side("first", 0.50, 0.52), Side("gone", [])]
    row = dict(zip(*(Findings(sides, ACCURACY, 0.4, {}).table()[i] for i in (0, 2)), strict=True))
    assert (row[""], row["accuracy"], row["to target"]) == ("gone", "failed", "reached in 0 of 0 runs")


def test_a_side_that_scores_like_the_reference_is_not_separable() -> None:
    sides = [side("first", 0.50, 0.52), side("same", 0.50, 0.52)]
    row = dict(zip(*(Findings(sides, ACCURACY, None, {}).table()[i] for i in (0, 2)), strict=True))
    assert (row[""], row["less first"], row["p"], row["verdict"]) == ("same", "+0.000", "1.000", "not separable")


def test_a_page_names_baselines_that_failed() -> None:
    alone = {"a": Side("node 0 alone", [curve(0, 0.1, error="it broke")])}
    page = comparison_page(Findings([side("fed", 0.5)], ACCURACY, None, alone), {}, [])
    assert "node 0 alone, seed 0: it broke" in page


def test_joining_is_told_node_by_node() -> None:
    alone = {"a": side("a", 0.30, 0.32, 0.31), "b": side("b", 0.70, 0.72, 0.73)}
    found = Findings([side("fed", 0.50, 0.52, 0.51)], ACCURACY, None, alone)
    assert found.joining() == [
        ["node", "rows", "alone", "fed: gain", "joining pays"],
        ["a", "4", "0.310 ± 0.010", "+0.200", "3 of 3"],
        ["b", "6", "0.717 ± 0.015", "-0.207", "0 of 3"],
    ]
    assert "pays for 1 of 2 nodes, and clearly for 1; 1 are clearly better off alone." in found.headline()
    mean = dict(zip(found.table()[0], found.table()[2], strict=True))
    assert mean["accuracy"] == spread({0: 0.5, 1: 0.52, 2: 0.52})


def test_pairs_are_those_of_a_seed() -> None:
    assert paired({0: 0.5, 1: 0.7}, {1: 0.6, 2: 0.1}) == pytest.approx([0.1])


def test_bands_are_over_rounds_that_all_runs_have() -> None:
    both = Side("any", [curve(0, 0.1, None, 0.3), curve(1, 0.1, 0.4, 0.5, 0.6)])
    assert both.band("accuracy", min) == [0.1, None, 0.3]
    assert both.at("bytes") == [0, 10, 20]


def test_a_table_can_be_pasted() -> None:
    assert markdown([["", "a"], ["x|y", "1"]]) == ["|      | a   |", "|------|-----|", "| x\\|y | 1   |"]


# ------------------------------------------------------------------------------- entries
def read(*texts: str, overrides: str = TINY) -> list[Entry]:
    return entries(texts, [overrides], Path.cwd())


def test_entries_are_presets_and_overrides() -> None:
    found = read("mixed-ranks", "strategy=fedavg", "learning-rate=0.1", overrides="simulation.num-supernodes=2")
    assert [entry.name for entry in found] == ["mixed-ranks", "fedavg", "learning-rate=0.1"]
    assert differing(found)["learning-rate"][2] == 0.1
    assert found[1].values_of(7)["seed"] == 7


def test_entries_share_their_split() -> None:
    with pytest.raises(ConfigError, match=r"only runs over the same split are comparable") as error:
        read("strategy=fedavg", "simulation.num-supernodes=3")
    assert "simulation.num-supernodes = 2, and 'simulation.num-supernodes=3' 3" in str(error.value)


@pytest.mark.parametrize("other", ["local-steps=1", "num-server-rounds=1 seed=5"])
def test_entries_with_the_same_settings_are_refused(other: str) -> None:
    with pytest.raises(ConfigError, match=rf"'fedavg' and '{other}' have the same settings"):
        read("strategy=fedavg", other)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    place = tmp_path_factory.mktemp("finished")
    options = {"num-server-rounds": 1, "tuning": "head", "local-steps": 1}
    return {seed: federate(place / str(seed), options | {"seed": seed}) for seed in (0, 1)}


def test_finished_runs_that_differ_in_their_seed_are_one_entry(finished: dict[int, Outcome]) -> None:
    [entry] = read(*(str(outcome.folder) for outcome in finished.values()))
    assert entry.finished == {seed: outcome.folder.resolve() for seed, outcome in finished.items()}
    assert list(federated([entry], (0, 1, 2), Path("x"))) == []


def test_a_run_at_work_is_not_compared(finished: dict[int, Outcome], tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(finished[0].folder, place)
    (place / "summary.json").write_text(json.dumps(finished[0].summary | {"status": "running"}))
    with pytest.raises(ConfigError, match="this run is running; wait for its end"):
        read(str(place))


# ------------------------------------------------------------------------------- jobs
def test_baselines_are_every_node_alone_and_all_rows_together() -> None:
    [first] = read("strategy=rbla", overrides=f"{TINY} tuning=lora lora.ranks='2,4'")
    jobs = list(baselines(first, (3,), Path("to")))
    assert [(job.kind, job.node) for job in jobs] == [(CENTRAL, None), (ALONE, 0), (ALONE, 1)]
    assert jobs[0].values["lora.ranks"] == "4"
    assert jobs[1].values["lora.ranks"] == "2,4"
    assert jobs[2].node_configs == {0: {"partition-id": 1, "num-partitions": 2}}
    assert {job.values["strategy"] for job in jobs} == {"fedavg"}
    assert {job.values["seed"] for job in jobs} == {3}
    assert len({job.folder for job in jobs}) == 3


def job(place: Path, values: dict[str, Any]) -> Job:
    [only] = federated([Entry("one", values)], (0,), place)
    return only


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path, finished: dict[int, Outcome]) -> None:
    one = job(tmp_path, dict(finished[0].run.flat) | {"num-server-rounds": 2})
    began = federate(one.folder, {"num-server-rounds": 1, "tuning": "head", "local-steps": 1})
    summary = one.results / "summary.json"
    summary.write_text(json.dumps(began.summary | {"status": "interrupted"}))
    assert not one.over
    assert work.run(one) == ""
    assert one.over
    assert (summary_of(one.results)["rounds"], summary_of(one.results)["resumed"]) == (2, [1])
    assert not (one.results / "checkpoints").exists()


def test_a_run_that_cannot_begin_says_why(tmp_path: Path, finished: dict[int, Outcome]) -> None:
    one = job(tmp_path, dict(finished[0].run.flat) | {"data.name": str(tmp_path / "no.csv")})
    assert work.run(one) == f"there is no file or folder {tmp_path / 'no.csv'}"
    assert not one.over  # the file may be there next time


def test_a_run_that_failed_in_a_round_is_not_run_again_and_how_to_is_said(
    tmp_path: Path, finished: dict[int, Outcome]
) -> None:
    asked = Asked(["strategy=fedavg", "strategy=fedprox"], 1, False, 1, None, tmp_path, [TINY])
    jobs = list(federated(entries(asked.texts, asked.overrides, Path.cwd()), (0,), tmp_path))
    for one, more in zip(jobs, ({}, {"status": "failed", "error": "3 failed rounds in a row"}), strict=True):
        shutil.copytree(finished[0].folder, one.results)
        (one.results / "summary.json").write_text(json.dumps(finished[0].summary | more))
    said: list[str] = []
    assert not compare(asked, said.append)
    assert said[0].startswith("2 runs, 2 of them done before;")
    assert f"fedprox, seed 0 failed: 3 failed rounds in a row; remove {jobs[1].folder} to run it again" in said


def test_a_folder_that_cannot_be_written_is_named_by_its_option(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=f"--to '{file}' cannot be written: Not a directory"):
        compare(Asked(["strategy=fedavg", "strategy=fedprox"], 1, False, 1, None, file, [TINY]), print)


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path, finished: dict[int, Outcome]) -> None:
    one = job(tmp_path, dict(finished[0].run.flat))
    theirs = one.folder / "theirs"
    theirs.mkdir(parents=True)
    one.results.symlink_to(theirs)
    with alone(theirs):
        assert "another process is at work in" in work.run(one)
    assert theirs.is_dir()


def test_nodes_keep_their_names_if_one_could_not_train_alone(tmp_path: Path, finished: dict[int, Outcome]) -> None:
    """Node 0 has no run; node 1 is still the second of the split."""
    [entry] = read(str(finished[0].folder))
    jobs = list(baselines(Entry("one", entry.values), (0,), tmp_path))
    second = next(one for one in jobs if one.node == 1)
    second.folder.mkdir(parents=True)
    second.results.symlink_to(finished[0].folder)
    asked = Asked([], 1, True, 1, None, tmp_path, [])
    found = _findings(asked, [entry], jobs, ACCURACY)
    assert list(found.alone) == [list(read_split(finished[0].folder)["nodes"])[1]]


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    worker = Worker()
    worker.process.kill()
    assert "its process ended with exit code -9" in worker.result()
    worker.end()


# ------------------------------------------------------------------------------- all of it
@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Asked, list[str]]:
    """Two strategies with baselines, and what was printed."""
    to, said = tmp_path_factory.mktemp("compared") / "to", list[str]()
    asked = Asked(["strategy=fedavg", "strategy=fedprox"], 2, True, 1, None, to, [TINY])
    assert compare(asked, said.append)
    return asked, said


@pytest.mark.slow
def test_a_comparison_runs_all_and_tells(compared: tuple[Asked, list[str]]) -> None:
    asked, said = compared
    assert said[0] == f"10 runs; 1 at a time, results in {asked.to}"
    kinds = ["alone" in line or 2 * ("all rows" not in line) for line in said[1:11]]
    assert kinds == sorted(kinds, key=[2, 0, 1].index)  # the longest first
    assert [line.split("]")[0] for line in said[1:11]] == [f"[{number}/10" for number in range(1, 11)]
    assert sum(line.startswith("| fed") for line in said) == 2
    assert any(line.startswith("| *all rows in one place*") for line in said)
    assert any(line.startswith("| 0    | 30") for line in said)
    page = (asked.to / PAGE).read_text()
    assert "<h2>Does joining pay, and for whom?</h2>" in page
    assert str(asked.to) not in page


@pytest.mark.slow
def test_what_was_run_is_not_run_again(compared: tuple[Asked, list[str]]) -> None:
    asked, before = compared
    said: list[str] = []
    assert compare(asked, said.append)
    assert said[0].startswith("10 runs, 10 of them done before;")
    assert said[1:] == before[11:]


@pytest.mark.slow
def test_a_run_of_a_comparison_has_the_bits_of_a_run(compared: tuple[Asked, list[str]], tmp_path: Path) -> None:
    asked, _ = compared
    [entry] = entries(["strategy=fedprox"], [TINY], Path.cwd())
    [one] = federated([entry], (1,), asked.to)
    alone = federate(tmp_path, {key: value for key, value in entry.values_of(1).items() if key != "output-dir"})
    assert one.kind == FEDERATED
    assert not (one.results / "model").exists()
    for ours, theirs in zip(lines_in(one.results), alone.rounds, strict=True):
        assert ours["loss"] == theirs["loss"]
        assert ours["bytes_up"] == theirs["bytes_up"]


@pytest.mark.slow
def test_a_node_alone_learns_from_its_own_rows(compared: tuple[Asked, list[str]]) -> None:
    """In one round of one step from one start, the mean of the nodes' models is that of the federation."""
    asked, _ = compared
    [first] = entries(["strategy=fedavg"], [TINY], Path.cwd())
    jobs = list(baselines(first, (0,), asked.to))
    told = [lines_in(one.results)[1]["nodes"][0]["metrics"] for one in jobs if one.kind == ALONE]
    [own] = federated([first], (0,), asked.to)
    assert [one["train-loss"] for one in told] == [
        node["metrics"]["train-loss"] for node in lines_in(own.results)[1]["nodes"]
    ]
    assert [one["num-examples"] for one in told] == [30, 30]
    [central] = [one for one in jobs if one.kind == CENTRAL]
    assert lines_in(central.results)[1]["nodes"][0]["metrics"]["num-examples"] == 60
    losses = [lines_in(one.results)[1]["loss"] for one in jobs]
    assert all(map(math.isfinite, losses))
    assert len(np.unique(losses)) == 3
    assert not (next(one for one in jobs if one.kind == ALONE).results / "split.json").exists()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_and_draws(compared: tuple[Asked, list[str]], width: int, tmp_path: Path) -> None:
    with browser(tmp_path) as chrome:
        chrome.open((compared[0].to / PAGE).as_uri(), width, dark=width < 600)
        assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
        assert chrome.run("document.querySelectorAll('figure.chart polyline').length") == 3
        assert chrome.run("document.querySelectorAll('figure.chart polygon').length") == 3
        assert chrome.problems == []

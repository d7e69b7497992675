"""Which runs follow from what a study declares, and the file in which it remembers them."""

from dataclasses import replace
from pathlib import Path

from studies import HEAD, HERE, OURS, STUDY, TINY, completed, measured

from benchmarks import command, pages, records
from benchmarks.derived import derive
from benchmarks.study import LAST, Measured, Method, Study, run_of


def names(study: Study, done: dict[str, Measured]) -> list[tuple[str, int, float]]:
    return [(run.method, run.seed, run.rate) for run in study.runs(done)]


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


def test_rounds_that_were_not_measured_count_for_nothing(tmp_path: Path) -> None:
    sparse = measured(rounds=12)
    sparse["accuracy"] = [0.1, *[None, 0.4] * 6]
    sparse["chosen-by"] = [0.1, *[None, 0.2] * 6]
    path = tmp_path / "some.json"
    records.save(path, STUDY, {run_of(TINY, OURS, 0, 0.001).key: sparse})
    (run,) = derive(*records.read(path))["runs"]
    assert (run["final"], run["last-5"], run["validation"], run["rounds-to-target"]) == (0.4, 0.4, 0.2, None)
    sparse["accuracy"][4] = 0.5
    records.save(path, STUDY, completed(STUDY, lambda _: sparse))
    assert derive(*records.read(path))["runs"][0]["rounds-to-target"] == 4
    pages.write(path)
    assert path.with_name("some-tiny.svg").read_text().startswith("<?xml")


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


def test_a_setting_may_search_among_shares_of_what_was_found_elsewhere() -> None:
    other = replace(TINY, name="other", options={**TINY.options, "local-steps": 2}, rates_of=TINY, shares=(1.0, 1 / 3))
    both = replace(STUDY, settings=(TINY, other))
    assert {run.setting for run in both.runs({})} == {"tiny"}  # nothing is known of it before the other search is over
    done = completed(both, lambda run: measured(run.rate if run.setting == "tiny" else 1 - run.rate))
    own = [(run.method, run.seed, run.rate) for run in both.runs(done) if run.setting == "other"]
    assert own == [
        *((method, 0, rate) for method in ("ours", "head") for rate in (0.01, 0.003333)),
        *((method, seed, 0.003333) for seed in (1, 2) for method in ("ours", "head")),
    ]
    assert len(done) == both.size == STUDY.size + 8


def test_a_setting_may_hold_what_one_search_found_and_search_a_second_option(tmp_path: Path) -> None:
    """Learning rates first, then head rates at the best of them, then all seeds with both."""
    rates = replace(TINY, name="rates", search_only=True)
    multiples = {"lora": (1.0, 10.0), "head": (1.0, 3.0)}
    heads = replace(rates, name="heads", rates=multiples, holds=rates, searched="head-rate")
    compared = replace(TINY, rates_of=rates, holds=heads, options={**TINY.options, "local-steps": 2})
    study = replace(STUDY, settings=(rates, heads, compared))
    assert {run.setting for run in study.runs({})} == {"rates"}
    done = completed(study, lambda run: measured(1 - run.rate if run.setting == "heads" else run.rate))
    own = [run for run in study.runs(done) if run.setting == "tiny" and run.method == "ours"]
    assert [(run.seed, run.rate, run.held) for run in own] == [
        (seed, 0.01, {"head-rate": 1.0, "learning-rate": 0.01}) for seed in (0, 1, 2)
    ]
    assert own[0].options["head-rate"] == 1.0
    assert own[0].options["learning-rate"] == 0.01
    searched = [(run.method, run.seed, run.rate) for run in study.runs(done) if run.setting == "heads"]
    assert searched == [("ours", 0, 1.0), ("ours", 0, 10.0), ("head", 0, 1.0), ("head", 0, 3.0)]
    assert len(done) == study.size == 3 + 4 + 6
    records.save(tmp_path / "some.json", study, done)
    assert records.load(tmp_path / "some.json") == done
    content = derive(*records.read(tmp_path / "some.json"))
    assert [(search["setting"], search["option"]) for search in content["search"]][::2] == [
        ("rates", "learning-rate"),
        ("heads", "head-rate"),
        ("tiny", "learning-rate"),
    ]
    page = pages.page(content)
    assert "## tiny" in page
    assert "## rates" not in page
    assert "| heads | ours | `head-rate` **1: " in page


def test_what_follows_from_a_search_waits_while_its_grid_grows() -> None:
    wide = replace(TINY, rates={"lora": (0.001, 0.01), "head": (0.01,)})
    other = replace(TINY, name="other", rates_of=wide, options={**TINY.options, "local-steps": 2})
    study = replace(STUDY, settings=(wide, other), extensions=1)
    done = {run.key: measured(run.rate) for run in study.runs({})}
    assert study.chosen(wide, OURS, done) == 0.01
    assert not study.settled(wide, OURS, done)
    assert [(run.setting, run.rate) for run in study.runs(done) if run.method == "ours" and run.key not in done] == [
        ("tiny", 0.1)
    ]


def test_runs_are_kept_while_a_wider_search_is_open(tmp_path: Path) -> None:
    """Later seeds at a rate that was found earlier are not lost when there are more rates to try."""
    narrow = replace(STUDY, settings=(replace(TINY, rates={"lora": (0.01,), "head": (0.01,)}),))
    path = tmp_path / "some.json"
    done = completed(narrow, lambda run: measured(run.rate))
    assert STUDY.chosen(TINY, OURS, done) is None
    records.save(path, STUDY, done)
    assert records.load(path) == done
    records.save(path, narrow, completed(STUDY, lambda run: measured(run.rate)))
    assert records.load(path) == done


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


def test_what_is_saved_is_known_again_and_what_is_not_declared_goes(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    done = completed(STUDY, lambda run: measured(run.rate))
    records.save(path, STUDY, done)
    assert records.load(path) == done
    alone = replace(STUDY, settings=(replace(TINY, methods=(HEAD,)),))
    records.save(path, alone, records.load(path))
    assert len(records.load(path)) == 3
    first = derive(*records.read(path))["runs"][0]
    assert first["command"].startswith('.venv/bin/thistledown run -c "num-server-rounds=1 local-steps=1 ')
    assert first["measured"]["on"] == HERE
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.json"]


def test_a_file_tells_all_that_a_study_declares(tmp_path: Path) -> None:
    """Settings that go by another's rates, rates and ties of a method, a level to compare with."""
    own = replace(OURS, rates=(0.2, 0.4), tied={"other-rate": 0.1}, searched="max-grad-norm")
    first = replace(TINY, methods=(own, HEAD), options={**TINY.options, "model.name": "base-{seed}"})
    other = replace(first, name="other", rates_of=first, shares=(1.0, 0.5), metric="loss")
    leveled = replace(TINY, name="leveled", level=lambda: ("a guess", 0.25))
    study = replace(STUDY, settings=(first, other, leveled), floor="head", savings=True)
    done = completed(study, lambda run: measured(run.rate % 1))
    records.save(tmp_path / "some.json", study, done)
    read, again = records.read(tmp_path / "some.json")
    assert again == done
    assert derive(read, again) == derive(study, done)
    assert list(read.runs(done)) == list(study.runs(done))

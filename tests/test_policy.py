"""What a node's owner allows: how it is written down, and that a deployed node keeps to it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed_node import SECRET, asked, context, refusal, settings
from flwr.app import ConfigRecord
from in_process import SMALL, InProcessGrid, federate
from samples import write_table

import client_app
import strategies
from client_app.deadline import TooLong, within_seconds
from client_app.permission import (
    NotPermitted,
    check_assignment,
    check_instructions,
    check_rows,
    check_scores,
    check_update,
)
from client_app.policy import TRUSTING, Columns, Policy, PolicyError, Privacy, Reports
from client_app.public_errors import NodeFailed
from strategies.exchange.types import Assignment, RunFailed
from strategies.protocol.instructions import write
from task.config import Data, Model, Task, TaskConfig
from task.kinds import registry

KINDS = ["query.profile", "query.base", "query.rehearsal", "query.trial", "train", "evaluate"]
DIGITS: dict[str, Any] = {"data.partitioner": "none", "data.labels": "0|1|2|3|4|5|6|7|8|9", "tuning": "head"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


# ---------------------------------------------------------------------- how it is written down


def test_a_file_is_read(tmp_path: Path) -> None:
    text = """
        tunings = ["lora", "head"]
        strategies = "rbla, fedavg"
        max-rank = 16
        [columns]
        inputs = ["scan, raw"]
        publish-labels = ["healthy", "ill"]
        [privacy]
        kinds = ["example-privacy"]
        epsilon = 8
        [reports]
        rows = "rounded"
    """
    policy = Policy.of({"policy": str(written(tmp_path, text)), "name": "clinic-1"})
    assert (policy.tunings, policy.strategies, policy.max_rank) == (("lora", "head"), ("rbla", "fedavg"), 16)
    assert policy.columns.inputs == ("scan, raw",)
    assert policy.columns.publish_labels == ("healthy", "ill")
    assert policy.privacy == Privacy(("example-privacy",), 8.0)
    assert policy.reports == Reports(rows="rounded")
    assert policy.offers is True


def test_single_keys_stand_in_the_node_config() -> None:
    node: dict[str, object] = {"name": "a", "policy.columns.inputs": "image,scan", "policy.max-rank": 4}
    assert Policy.of(node) == Policy(columns=Columns(inputs=("image", "scan")), max_rank=4)
    assert Policy.of({"name": "a"}) == Policy()


def test_a_simulated_node_allows_all_that_is_not_set() -> None:
    assert Policy.of({}, deployed=False) == TRUSTING
    assert Policy.of({"policy.max-rank": 4}, deployed=False).min_rows_per_reply == 0


BAD = [
    ("max-rnk = 4", "there is no key 'max-rnk'; did you mean 'max-rank'?"),
    ("max-rank = 'four'", "max-rank must be a whole number, not text 'four'"),
    ("max-rank = -1", "max-rank must be at least 0"),
    ("tunings = ['lroa']", "tunings: there is no 'lroa'; did you mean 'lora'?"),
    ("wrappers = ['halve']", "wrappers: there is no 'halve'; did you mean 'half'?"),
    ("[privacy]\nkinds = ['example-privac']", "privacy.kinds: there is no 'example-privac'; did you mean 'example-"),
    ("[privacy]\nkinds = ['central-privacy']", "privacy.kinds: 'central-privacy' is not a privacy wrapper that a node"),
    ("[reports]\nrows = 'some'", "reports.rows must be one of exact, rounded"),
    ("tunings = [1]", "tunings must be text with items"),
    ("max-rank = ", "Invalid value"),
]


@pytest.mark.parametrize(("text", "problem"), BAD)
def test_a_bad_policy_is_refused_with_the_reason(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(PolicyError) as error:
        Policy.of({"policy": str(written(tmp_path, text))})
    assert problem in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert error.value.public == "the node's policy cannot be read"


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="3 problems"):
        Policy.read(written(tmp_path, "a = 1\nmax-rank = 'b'\ntunings = ['c']"))


def test_a_file_and_single_keys_are_too_much(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="use one"):
        Policy.of({"policy": str(written(tmp_path, "max-rank = 4")), "policy.max-rank": 8})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("node", [{"policy": "/nowhere/policy.toml"}, {"policy.max-rnk": 4}])
def test_a_node_whose_policy_cannot_be_read_refuses_everything(kind: str, node: dict[str, object]) -> None:
    """Flower logs an error on the node with its cause."""
    with pytest.raises(NodeFailed) as failed:
        asked(kind, {"instructions": settings()}, context(**node))
    assert str(failed.value) == "the node's policy cannot be read"
    cause = str(failed.value.__cause__)
    assert "/nowhere/policy.toml" in cause or "did you mean 'max-rank'" in cause


# ---------------------------------------------------------------------- what an order may ask for

ORDER = TaskConfig(data=Data(labels=("x", "y")))


def refused_kinds(check: Callable[[], None]) -> str:
    """The kinds that are refused; empty where nothing is."""
    try:
        check()
    except NotPermitted as error:
        start, kinds = error.public.split(": ")
        return kinds if start == "refused by the node's policy" else error.public
    return ""


def reasons(policy: Policy, config: TaskConfig, *wrappers: str, **options: Any) -> str:
    chain = [strategies.load_wrapper(name, **options) for name in wrappers]
    order = write(config, strategies.load("fedavg", chain), "0" * 32)
    return refused_kinds(lambda: check_instructions(policy, order, config))


TEXT = TaskConfig(Task(registry.load("text-classification")), Model("some/model"), Data("some/data", labels=("x", "y")))
CHAT = TaskConfig(Task(registry.load("causal-lm")), Model("some/model"), Data("some/data", id_column="who"))

TURNS = TaskConfig(Task(registry.load("causal-lm")), Model("some/model"), Data("some/data", messages_column="talks"))
PAIRS = replace(TURNS, data=Data("some/data", prompt_column="asked", completion_column="answered"))


@pytest.mark.parametrize(
    ("policy", "config", "refused"),
    [
        (Policy(), ORDER, ""),
        (Policy(tasks=("causal-lm",)), ORDER, "tasks"),
        (Policy(tasks=("image-classification",)), ORDER, ""),
        (Policy(tunings=("head", "bias")), ORDER, "tunings"),
        (Policy(strategies=("rbla",)), ORDER, "strategies"),
        (Policy(strategies=("fedavg",)), ORDER, ""),
        (Policy(models=("other/model", "1" * 32)), ORDER, "models"),
        (Policy(models=("embedded",)), ORDER, ""),
        (Policy(models=("0" * 32,)), ORDER, ""),
        (Policy(columns=Columns(inputs=("text",))), ORDER, "columns"),
        (Policy(columns=Columns(inputs=("text",))), TEXT, ""),
        (Policy(columns=Columns(labels=("diagnosis",))), TEXT, "columns"),
        (Policy(columns=Columns(labels=("diagnosis",))), CHAT, ""),
        (Policy(columns=Columns(inputs=("instruction", "output"))), CHAT, "columns"),
        (Policy(columns=Columns(inputs=("instruction", "input", "output"))), CHAT, ""),
        (Policy(columns=Columns(ids=("visit",))), CHAT, "columns"),
        (Policy(columns=Columns(inputs=("instruction", "input", "output"))), TURNS, "columns"),
        (Policy(columns=Columns(inputs=("talks",))), TURNS, ""),
        (Policy(columns=Columns(inputs=("asked",))), PAIRS, "columns"),
        (Policy(columns=Columns(inputs=("asked", "answered"))), PAIRS, ""),
        (Policy(columns=Columns(max_labels=1)), ORDER, "labels"),
        (Policy(reports=Reports(scores=False)), TaskConfig(evaluate="both"), "reports"),
        (Policy(), TaskConfig(batch_size=1), "work"),
        (Policy(min_batch_size=1), TaskConfig(batch_size=1), ""),
        (Policy(), TaskConfig(learning_rate=1e-6, weight_decay=1e6), "work"),
        (Policy(max_steps=10), TaskConfig(local_steps=11), "work"),
        (Policy(tunings=("head",), strategies=("rbla",)), ORDER, "tunings, strategies"),
    ],
)
def test_instructions_are_refused_by_kind(policy: Policy, config: TaskConfig, refused: str) -> None:
    assert reasons(policy, config) == refused


@pytest.mark.parametrize("kind", registry.names())
def test_every_kind_asks_for_its_columns(kind: str) -> None:
    own = registry.load(kind)
    data = Data("some/data", labels=("x", "y"), prompt_column="asked", completion_column="answered")
    config = TaskConfig(Task(own), Model("some/model"), data)
    first, *others = own.columns(data)
    assert reasons(Policy(tasks=(kind,), columns=Columns(inputs=(first, *others))), config) == ""
    assert reasons(Policy(columns=Columns(inputs=(*others, "other"))), config) == "columns"
    assert reasons(Policy(tasks=tuple({*registry.names()} - {kind})), config) == "tasks"


def test_a_fingerprint_is_no_reason_before_it_is_known() -> None:
    order = write(ORDER, strategies.load("fedavg"), "")
    check_instructions(Policy(models=("1" * 32,)), order, ORDER)
    with pytest.raises(NotPermitted):
        check_instructions(Policy(models=("some/model",)), order, ORDER)


PRIVATE = Policy(privacy=Privacy(kinds=("example-privacy", "local-privacy"), epsilon=8.0, delta=1e-5))


@pytest.mark.parametrize(
    ("wrappers", "options", "refused"),
    [
        ((), {}, "privacy"),
        (("half",), {}, "privacy"),
        (("central-privacy",), {}, "privacy"),
        (("local-privacy",), {}, ""),
        (("example-privacy",), {"epsilon": 8.0}, ""),
        (("example-privacy",), {"epsilon": 8.1}, "privacy"),
        (("example-privacy",), {"epsilon": 1e9}, "privacy"),
        (("example-privacy",), {"epsilon": 0.0}, "privacy"),
        (("example-privacy",), {"epsilon": 0.0, "noise": 1.0}, "privacy"),
        (("example-privacy",), {"clip": 0.0}, "privacy"),
        (("example-privacy",), {"delta": 1e-3}, "privacy"),
    ],
)
def test_privacy_is_required(wrappers: tuple[str, ...], options: dict[str, float], refused: str) -> None:
    assert reasons(PRIVATE, ORDER, *wrappers, **options) == refused
    assert reasons(Policy(privacy=Privacy(epsilon=8.0)), ORDER, *wrappers, **options) == refused
    assert reasons(Policy(), ORDER, *wrappers, **options) == ""


def test_only_these_wrappers() -> None:
    assert reasons(Policy(wrappers=("half",)), ORDER, "half") == ""
    assert reasons(Policy(wrappers=("half",)), ORDER, "quantize") == "wrappers"
    assert reasons(Policy(wrappers=("half",)), ORDER) == ""


# ---------------------------------------------------------------------- what a message may ask for


@pytest.mark.parametrize(
    ("policy", "assignment", "cohort", "refused"),
    [
        (Policy(), Assignment(1, 2, 0, 8), 0, ""),
        (Policy(min_cohort=3), Assignment(1, 2, 0, 8), 2, "cohort"),
        (Policy(min_cohort=3), Assignment(1, 2, 0, 8), 0, "cohort"),
        (Policy(min_cohort=3), Assignment(1, 2, 0, 8), 3, ""),
        (Policy(max_rounds=10), Assignment(1, 11, 0, 8), 0, "rounds"),
        (Policy(max_rounds=10), Assignment(11, 10, 0, 8), 0, "rounds"),
        (Policy(max_rank=4), Assignment(1, 2, 0, 8), 0, "rank"),
    ],
)
def test_an_assignment_must_obey_the_policy(policy: Policy, assignment: Assignment, cohort: int, refused: str) -> None:
    assert refused_kinds(lambda: check_assignment(policy, assignment, cohort)) == refused


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "strategy", "good"),
    [
        (100, 1, 1, "fedavg", False),
        (100, 4, 1, "fedavg", False),
        (100, 4, 2, "fedavg", True),
        (100, 8, 1, "fedavg", True),
        (4, 4, 1, "fedavg", True),  # all that it has
        (4, 2, 1, "fedavg", False),
        (100, 4, 100, "fedkseed", False),  # each step sends a number of its own
        (100, 8, 100, "fedkseed", True),
    ],
)
def test_an_update_is_of_several_rows(rows: int, batch: int, steps: int, strategy: str, good: bool) -> None:
    config = TaskConfig(batch_size=batch, local_steps=steps)
    said = refused_kinds(lambda: check_update(Policy(), strategies.load(strategy), config, rows))
    assert said == ("" if good else "work")


def test_work_and_scores_are_bounded() -> None:
    plain = strategies.load("fedavg")
    with pytest.raises(NotPermitted, match="max-steps = 5"):
        check_update(Policy(max_steps=5), plain, TaskConfig(local_epochs=2), 96)
    check_update(Policy(max_steps=12), plain, TaskConfig(local_epochs=2), 96)
    with pytest.raises(NotPermitted, match="a score of 7 rows"):
        check_scores(Policy(), 7, 100)
    check_scores(Policy(), 8, 100)
    with pytest.raises(NotPermitted, match="1 rows, min-rows = 2"):
        check_rows(Policy(), 1)


def test_work_that_takes_too_long_is_broken_off() -> None:
    began = time.monotonic()
    with pytest.raises(TooLong, match=r"max-seconds = 0\.1") as error, within_seconds(0.1):
        sum(1 for _ in iter(lambda: time.monotonic() > began + 10, True))
    assert error.value.public == "refused by the node's policy: seconds"
    with within_seconds(0.05):
        pass
    time.sleep(0.1)  # nothing rings afterwards


# ---------------------------------------------------------------------- columns without a policy


def patients(tmp_path: Path, rows: int = 40) -> Path:
    """A file with a private column beside those of a study."""
    numbers = [f"{SECRET}-{number}" for number in range(rows)]
    return write_table(
        tmp_path / "patients.csv",
        {"text": [f"visit {n}" for n in range(rows)], "label": ["x", "y"] * (rows // 2), "ssn": numbers},
    )


def study(**options: object) -> ConfigRecord:
    return settings(task__kind="text-classification", model__name="some/model", data__name="some/data", **options)


def test_a_private_column_does_not_leave_as_label_names(tmp_path: Path) -> None:
    node = context(data_path=str(patients(tmp_path)), store_path=str(tmp_path / "store"))
    said = refusal("query.profile", {"instructions": study(data__label_column="ssn", data__labels="")}, node)
    assert said == "the instructions name no labels, and a node does not report its own: data.labels must be set"
    profile = asked("query.profile", {"instructions": study()}, node).content.config_records["profile"]
    assert (profile["labels-fit"], profile["labels"], profile["num-examples"]) == (True, [], 40)
    assert SECRET not in str(profile)


@pytest.mark.parametrize("guess", [f"{SECRET}-3", "|".join(f"{SECRET}-{n}" for n in range(40)), "nobody|else"])
def test_a_private_column_is_no_oracle(tmp_path: Path, guess: str) -> None:
    """Whatever is guessed, right or wrong, one value or all, the answer is the same."""
    node = context(data_path=str(patients(tmp_path)), store_path=str(tmp_path / "store"))
    said = refusal("query.profile", {"instructions": study(data__label_column="ssn", data__labels=guess)}, node)
    assert said == "column 'ssn' has too many different values to be labels"


def test_an_owner_may_name_such_a_column(tmp_path: Path) -> None:
    own = {"policy.columns.labels": "ssn"}
    node = context(data_path=str(patients(tmp_path)), store_path=str(tmp_path / "store"), **own)
    every = "|".join(f"{SECRET}-{n}" for n in range(40))
    profile = asked("query.profile", {"instructions": study(data__label_column="ssn", data__labels=every)}, node)
    assert profile.content.config_records["profile"]["labels-fit"] is True


def test_more_labels_than_a_column_may_have(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": ["a"] * 60, "label": ["x", "y", "z"] * 20})
    node = context(data_path=str(path), store_path=str(tmp_path / "s"), **{"policy.columns.max_labels": 2})
    assert "too many different values" in refusal("query.profile", {"instructions": study()}, node)


# ---------------------------------------------------------------------- federations


def digits(tmp_path: Path, rows: int = 60) -> Path:
    from task.data.sources.digits import digits_part

    images, labels = digits_part("train")
    path = tmp_path / "digits.npz"
    if not path.exists():
        import numpy as np

        np.savez(path, images=images[:rows] * 15, labels=labels[:rows])
    return path


def federation(tmp_path: Path, options: dict[str, Any] | None = None, **policy: Any) -> Any:
    """Three deployed nodes of the digits; the second has this policy."""
    path = str(digits(tmp_path))
    own: dict[int, dict[str, Any]] = {n: {"data-path": path, "name": f"clinic-{n}"} for n in range(3)}
    own[1] |= {f"policy.{key.replace('__', '.').replace('_', '-')}": value for key, value in policy.items()}
    grid = InProcessGrid(client_app.app, 3, own, deployed=True)
    return federate(tmp_path, {**DIGITS, **(options or {})}, grid)


def test_the_defaults_let_an_honest_run_be(tmp_path: Path) -> None:
    outcome = federation(tmp_path, {"evaluate": "both"})
    assert outcome.summary["status"] == "completed"
    assert [line["refused"] for line in outcome.rounds[1]["nodes"]] == [""] * 3


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("policy", "kind"),
    [({"tunings": "full"}, "tunings"), ({"privacy__kinds": "example-privacy"}, "privacy"), ({"min_rows": 100}, "rows")],
)
def test_the_handshake_says_whom_it_excluded_and_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: dict[str, Any], kind: str
) -> None:
    outcome = federation(tmp_path, **policy)
    assert [line["node"] for line in outcome.rounds[1]["nodes"]] == ["clinic-0", "clinic-2"]
    [said] = [r.message for r in caplog.records if "left out node" in r.message]
    assert f"refused by the node's policy: {kind} (node 'clinic-1')" in said


def test_without_enough_nodes_the_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"refused by the node's policy: columns \(node 'clinic-1'\)"):
        federation(tmp_path, {"min-train-nodes": 3}, columns__inputs="scan")


@pytest.mark.slow
def test_a_node_of_a_larger_cohort_does_not_answer_in_a_small_one(tmp_path: Path) -> None:
    outcome = federation(tmp_path, {"fraction-train": 0.6, "num-server-rounds": 4}, min_cohort=3)
    lines = [line for entry in outcome.rounds for line in entry["nodes"] if line["node"] == "clinic-1"]
    assert lines
    assert all("refused by the node's policy: cohort" in line["refused"] for line in lines)
    whole = federation(tmp_path, min_cohort=3)
    assert [line["refused"] for line in whole.rounds[1]["nodes"]] == [""] * 3


@pytest.mark.slow
def test_an_offer_may_be_declined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for policy, kind in (({"offers": False}, "offers"), ({"max_base_bytes": 1000}, "size")):
        path = str(digits(tmp_path))
        own: dict[int, dict[str, Any]] = {
            n: {"data-path": path, "name": f"clinic-{n}", "store-path": str(tmp_path / f"store {kind} {n}")}
            for n in range(2)
        }
        own[1] |= {f"policy.{key.replace('_', '-')}": value for key, value in policy.items()}
        outcome = federate(tmp_path, DIGITS, InProcessGrid(client_app.app, 2, own, deployed=True))
        assert [line["node"] for line in outcome.rounds[1]["nodes"]] == ["clinic-0"]
        assert f"refused by the node's policy: {kind}" in caplog.text


def test_what_is_not_to_be_reported_does_not_leave(tmp_path: Path) -> None:
    hidden = {"reports__loss": False, "reports__machine": False, "reports__rows": "rounded"}
    outcome = federation(tmp_path, **hidden)
    grid = outcome.grid
    profiles = {e.partition: e.reply.config_records["profile"] for e in grid.of("query.profile")}
    assert [profiles[1][key] for key in ("device", "dtypes", "memory", "cores", "versions")] == ["", [], 0, 0, ""]
    assert profiles[0]["device"] == "cpu"
    assert (profiles[0]["num-examples"], profiles[1]["num-examples"]) == (60, 32)
    trains = {e.partition: e.reply.metric_records["metrics"] for e in grid.of("train")}
    assert set(trains[0]) - set(trains[1]) == {"train-loss", "seconds", "steps"}
    assert trains[1]["num-examples"] == 32


def test_a_rank_is_no_larger_than_the_owner_allows(tmp_path: Path) -> None:
    options = {"tuning": "lora", "strategy": "rbla", "lora.ranks": "8", "lora.targets": "q_proj,v_proj"}
    outcome = federation(tmp_path, options, max_rank=2)
    assert {line["node"]: line["rank"] for line in outcome.rounds[1]["nodes"]} == {
        "clinic-0": 8, "clinic-1": 2, "clinic-2": 8,
    }  # fmt: skip


def test_published_labels_and_no_others_leave(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"its labels are not among the run's, 'a\|b'; it has '0\|1'"):
        federation(tmp_path, {"data.labels": "a|b", "evaluate": "nodes"}, columns__publish_labels="0|1")


def test_a_simulated_run_is_bound_by_a_policy_that_is_set(tmp_path: Path) -> None:
    own = {1: {"policy.tunings": "full"}}
    outcome = federate(tmp_path, {"tuning": "head"}, node_configs=own)
    assert [line["node"] for line in outcome.rounds[1]["nodes"]] == ["0", "2"]
    assert SMALL["local-steps"] == 1

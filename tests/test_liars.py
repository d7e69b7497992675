"""What one node says of itself does not decide a run: rows that nobody has, scores that cannot be."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from in_process import SMALL, InProcessGrid, Outcome, equal, federate, left, resumed, retold, sent, suiting
from test_lies import changed

import client_app
from server_app.config import RunConfig
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.types import MAX_ROWS, Assignment, RunFailed, State, Update
from strategies.fedavg import FedAvg
from strategies.flora import Flora
from strategies.rounds.defence import row_limits
from strategies.rounds.defence.outliers import Plausible
from strategies.rounds.defence.spool import Spool
from task.data.partition import partition
from task.data.partitioners.base import SplitError
from task.data.prepared import data_index
from task.storage.store import server_store

FIVE: dict[str, Any] = {"simulation.num-supernodes": 5, "tuning": "head", "num-server-rounds": 2}


def claims(*rows: int) -> dict[str, int]:
    return {str(number): claim for number, claim in enumerate(rows)}


# ---------------------------------------------------------------------- rows


def test_a_claim_beyond_the_ratio_counts_as_the_median() -> None:
    rows = row_limits.limits(claims(10, 12, 20, 61, 10**12), 5.0)
    assert rows == {"0": MAX_ROWS, "1": MAX_ROWS, "2": MAX_ROWS, "3": MAX_ROWS, "4": 20}
    assert row_limits.limits(claims(10, 10**12), 5.0)["1"] == 10  # half of the nodes may lie
    assert row_limits.limits(claims(10, 12, 10**12), 0.0)["2"] == MAX_ROWS
    assert row_limits.limits(claims(0, 10, 12), 5.0) == {"0": MAX_ROWS, "1": MAX_ROWS, "2": MAX_ROWS}
    assert row_limits.limits({}, 5.0) == {}


@pytest.mark.parametrize("split", ["iid", "dirichlet", "linear", "square", "staircase", "shards"])
@pytest.mark.parametrize("nodes", [10, 16])
def test_no_split_of_the_digits_goes_beyond_the_ratio(split: str, nodes: int) -> None:
    for alpha in (0.1, 0.5):
        task = RunConfig.read({"data.partitioner": split, "data.alpha": alpha}).task
        try:
            parts = partition(task, data_index(task, server_store()), nodes, server_store())
        except SplitError:
            continue  # square with 16 nodes leaves some without rows
        assert set(row_limits.limits(claims(*map(len, parts)), 5.0).values()) == {MAX_ROWS}


def claiming(rows: int) -> Any:
    """Node 1 claims these rows and sends an update that does harm."""

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if partition != 1:
            return answer
        if kind == "query.profile":
            answer.content.config_records["profile"]["num-examples"] = rows
            return answer
        answer = changed(num_examples=rows)(answer) if kind in ("train", "evaluate") else answer
        return retold(answer, lambda ts: {n: -t for n, t in ts.items()}) if kind == "train" else answer

    return spoil


@pytest.mark.slow
def test_a_node_that_claims_a_million_million_rows_does_not_decide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen 7: it moved everything."""
    honest = federate(tmp_path / "honest", FIVE)
    outcome = federate(tmp_path / "lied", FIVE, spoil=claiming(10**12))
    assert [line["metrics"]["num-examples"] < 100 for line in outcome.rounds[1]["nodes"]] == [True] * 5
    assert along(outcome, honest) > 0.5
    believed = federate(tmp_path / "believed", FIVE | {"max-weight-ratio": 0.0}, spoil=claiming(10**12))
    assert along(believed, honest) < 0
    said = [record.message for record in caplog.records if "max-weight-ratio" in record.message]
    assert len(said) == 1
    assert "node 1 claims 1000000000000 rows" in said[0]


def along(outcome: Outcome, honest: Outcome) -> float:
    """The cosine of what two runs have learned."""
    moved = []
    for run in (outcome, honest):
        start = sent(run.grid.of("train")[0].request)
        moved.append(torch.cat([(t - start[n]).flatten() for n, t in run.state().tensors.items()]))
    return float(torch.nn.functional.cosine_similarity(*moved, dim=0))


@pytest.mark.judged
@pytest.mark.slow
def test_scores_weigh_no_more_than_updates(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        answer = claiming(10**12)(partition, kind, answer)
        return changed(accuracy=1.0)(answer) if partition == 1 and kind == "evaluate" else answer

    outcome = federate(tmp_path, FIVE | {"evaluate": "nodes"}, spoil=spoil)
    honest = federate(tmp_path / "honest", FIVE | {"evaluate": "nodes", "num-server-rounds": 1})
    assert outcome.rounds[0]["accuracy"] - honest.rounds[0]["accuracy"] < 0.6
    assert outcome.rounds[0]["nodes-num-examples"] < 100


# ---------------------------------------------------------------------- scores


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"accuracy": 2e99}, "metric 'accuracy' is 2e+99, not from 0 to 1"),
        ({"accuracy": -0.1}, "metric 'accuracy' is -0.1, not from 0 to 1"),
        ({"loss": -1.0}, "metric 'loss' is -1, not from 0 to 1e+06"),
        ({"loss": 1e50}, "metric 'loss' is 1e+50, not from 0 to 1e+06"),
        ({"perplexity": 0.5}, "metric 'perplexity' is 0.5, not from 1 to"),
    ],
)
def test_scores_that_cannot_be_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metrics: dict[str, float], words: str
) -> None:
    """Seen 7: one node's accuracy of 2e99 became the run's."""

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        return changed(**metrics)(answer) if (partition, kind) == (1, "evaluate") else answer

    outcome = federate(tmp_path, FIVE | {"evaluate": "nodes", "num-server-rounds": 1}, spoil=spoil)
    assert 0 <= outcome.rounds[-1]["accuracy"] <= 1
    assert any("node 1 did not evaluate" in record.message and words in record.message for record in caplog.records)


@pytest.mark.judged
def test_a_loss_of_training_that_cannot_be_is_refused(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        return changed(train_loss=1e30)(answer) if (partition, kind) == (1, "train") else answer

    outcome = federate(tmp_path, FIVE, spoil=spoil)
    refused = {line["node"]: line["refused"] for line in outcome.rounds[1]["nodes"] if line["refused"]}
    assert refused == {"1": "metric 'train-loss' is 1e+30, not from 0 to 1e+06"}
    assert outcome.rounds[1]["train-loss"] < 10


# ---------------------------------------------------------------------- how a run ends


def broken(partition: int, kind: str, answer: Message) -> Message:
    if kind == "train":
        raise ValueError("no luck")
    return answer


@pytest.mark.slow
def test_a_resumed_run_whose_rounds_all_fail_has_failed(tmp_path: Path) -> None:
    """Seen 10: it said `completed`."""
    folder = federate(tmp_path, FIVE).folder
    with pytest.raises(RunFailed, match="1 failed rounds in a row, the last because 0 of 5 replies were good"):
        resumed(folder, {"num-server-rounds": 3}, InProcessGrid(client_app.app, 5, spoil=broken))
    summary, rounds = left(tmp_path)
    assert (summary["status"], summary["failed-rounds"], summary["rounds"]) == ("failed", 1, 3)
    assert rounds[3]["failed"]
    assert (folder / "model" / "best").exists()
    assert resumed(folder, {"num-server-rounds": 4}).summary["status"] == "completed"


@pytest.mark.first(1)
@pytest.mark.parametrize("strategy", [FedAvg, Flora])
def test_a_state_that_would_not_be_finite_fails_the_round(
    strategy: type[Algorithm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a rule that overflows: in a tensor of the state, or in an entry of the journal."""
    combine = strategy.combine

    def beyond(self: Algorithm, state: State, updates: Iterable[Update]) -> dict[str, torch.Tensor]:
        kept = list(updates)
        combined = combine(self, state, kept)
        wild = {n: t * 1e38 * 1e38 for n, t in combined.items() if "classifier" not in n}
        return combined | (wild if kept[0].assignment.round == 2 else {})

    monkeypatch.setattr(strategy, "combine", beyond)
    options = SMALL | {"strategy": strategy.__module__.split(".")[-1], "num-server-rounds": 3, "lora.targets": "q_proj"}
    outcome = federate(tmp_path, options)
    failed = [line["failed"] for line in outcome.rounds]
    assert [bool(reason) for reason in failed] == [False, False, True, False]
    where = r"'.* \(entry 0\)'" if strategy is Flora else r"'[\w.]+'"
    assert re.fullmatch(f"the new state would hold NaN or infinity in {where}, from the updates of 0, 1, 2", failed[2])
    assert outcome.rounds[2]["loss"] == outcome.rounds[1]["loss"]  # the state stays
    assert outcome.summary["failed-rounds"] == 1


# ---------------------------------------------------------------------- updates that are too long

EVERY: dict[str, dict[str, Any]] = {
    "fedavg/full": {"tuning": "full"},
    "rbla": {"strategy": "rbla", "lora.ranks": "2,4,8"},
    "flora": {"strategy": "flora", "lora.ranks": "2,4,8"},
    "hetlora": {"strategy": "hetlora", "lora.ranks": "2,4,8"},
    "flex-lora": {"strategy": "flex-lora", "lora.ranks": "2,4,8"},
    "fedex-lora": {"strategy": "fedex-lora"},
    "ferret": {"strategy": "ferret", **suiting("ferret")},
    "fedkseed": {"strategy": "fedkseed", **suiting("fedkseed")},
    "rolora": {"strategy": "rolora"},
    "top-k,half": {"wrappers": "top-k,half"},
    "quantize": {"wrappers": "quantize"},
    "local-privacy": {"wrappers": "local-privacy", "local-privacy.epsilon": 0.0},
}


def scaled(by: float, first: int = 1) -> Any:
    """Node 1 sends its update times `by`, from a round on, as far as its dtypes hold that."""

    def times(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or "lora_A" in name:
            return tensor
        return (tensor.double() * by).clamp(-1e12, 1e12).to(tensor.dtype)

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if (partition, kind) != (1, "train") or answer.content.metric_records["metrics"]["server-round"] < first:  # type: ignore[operator]
            return answer
        return retold(answer, lambda tensors: {name: times(name, t) for name, t in tensors.items()})

    return spoil


LATER = ("fedavg/full", "flora", "hetlora", "ferret")


@pytest.mark.judged
@pytest.mark.first(1)
@pytest.mark.parametrize(("name", "first"), [(name, 1) for name in EVERY] + [(name, 2) for name in LATER])
def test_an_update_that_is_far_too_long_is_refused(tmp_path: Path, name: str, first: int) -> None:
    """Seen 10: one of 1e12, and every later round was NaN. Without history, and with that of one round."""
    options = SMALL | {"simulation.num-supernodes": 5, "num-server-rounds": 2} | EVERY[name]
    outcome = federate(tmp_path, options, spoil=scaled(1e15, first))
    for entry in outcome.rounds[1:]:
        refused = {line["node"]: line["refused"] for line in entry["nodes"] if line["refused"]}
        assert list(refused) == (["1"] if entry["round"] >= first else [])
        if refused:
            reasons = ("more than outlier-factor = 5 times the median", "no number", "the largest number allowed")
            assert any(reason in refused["1"] for reason in reasons)
    assert outcome.summary["status"] == "completed"
    assert all(line["loss"] < 20 for line in outcome.rounds)


@pytest.mark.first(1)
@pytest.mark.parametrize("factor", [20.0, -10.0])
def test_twenty_times_an_update_is_too_long(tmp_path: Path, factor: float) -> None:
    outcome = federate(tmp_path, FIVE, spoil=scaled(factor))
    refused = [line["refused"] for line in outcome.rounds[1]["nodes"] if line["refused"]]
    assert len(refused) == 1
    assert "its update has a norm" in refused[0]


@pytest.mark.slow
def test_honest_updates_that_wait_leave_the_same_bits(tmp_path: Path) -> None:
    options = {"strategy": "rbla", "lora.ranks": "2,4,8", "num-server-rounds": 2}
    waited, plain = (federate(tmp_path / f"{factor}", options | {"outlier-factor": factor}) for factor in (5.0, 0.0))
    assert equal(waited.state().tensors, plain.state().tensors)


def test_a_small_cohort_goes_by_the_rounds_before() -> None:
    before = {"norm": [1.0, 1.1, 0.9] * 3}
    alone = Plausible(5.0, before)
    assert not alone.sure({"norm": 50.0})
    assert alone.refusal({"norm": 50.0}) == (
        "its update has a norm of 50 by the root of its numbers, more than outlier-factor = 5 times the median, 1"
    )
    assert alone.sure({"norm": 4.0})


def test_honest_updates_may_grow_together() -> None:
    round = Plausible(5.0, {"norm": [1.0] * 9})
    lengths = [{"norm": 10.0 + number} for number in range(10)]
    assert not any(map(round.sure, lengths))
    assert not any(map(round.refusal, lengths))
    for own in lengths:
        round.believe(own)
    round.close()
    assert round.before["norm"] == [1.0] * 9 + [10.0 + number for number in range(10)]


def test_what_was_not_measured_before_is_not_compared() -> None:
    round = Plausible(5.0, {"norm of weights": [1.0] * 9})
    assert not round.sure({"norm of factors": 50.0})
    assert not round.refusal({"norm of factors": 50.0})
    zeros = Plausible(5.0, {})
    assert not any(zeros.sure({"norm": length}) for length in (0.0, 0.0, 1.0))
    assert not zeros.refusal({"norm": 1.0})  # nothing to measure it by


def test_spooled_updates_come_back_as_they_were() -> None:
    flat = torch.arange(12.0)
    sets = [
        {"a": flat[:6].view(2, 3).T, "b": flat[6:].to(torch.bfloat16)},
        {"c": torch.tensor([True, False]), "d": torch.zeros(0, 3), "e": torch.tensor(1 + 2j)},
    ]
    updates = [Update(str(n), Assignment(1, 2, n, 4), tensors, 1.0 + n, {"steps": n}) for n, tensors in enumerate(sets)]
    with Spool() as spool:
        passed = list(spool.passing(updates))
        for once_more in (list(spool), list(spool)):
            for one, other in zip(updates, once_more, strict=True):
                assert equal(one.delta, other.delta)
                assert list(one.delta) == list(other.delta)
                assert replace(one, delta={}) == replace(other, delta={})
    assert passed == updates
    with Spool(limit=40) as small:
        assert len(list(small.passing(updates))) == 2
        assert (len(small), small.full) == (1, True)

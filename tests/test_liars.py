"""What one node says of itself does not decide a run: rows that nobody has, scores that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from in_process import InProcessGrid, Outcome, hold, left, resumed, retold, sent
from test_lies import changed

import client_app
from server_app.config import RunConfig
from strategies.exchange import weights
from strategies.exchange.vocabulary import MAX_ROWS, RunFailed
from task.data import outline
from task.partition import SplitError, partition
from task.store import server_store

FIVE: dict[str, Any] = {"simulation.num-supernodes": 5, "tuning": "head", "num-server-rounds": 2}


def claims(*rows: int) -> dict[str, int]:
    return {str(number): claim for number, claim in enumerate(rows)}


# ---------------------------------------------------------------------- rows


def test_a_claim_beyond_the_ratio_counts_as_the_median() -> None:
    rows = weights.limits(claims(10, 12, 20, 61, 10**12), 5.0)
    assert rows == {"0": MAX_ROWS, "1": MAX_ROWS, "2": MAX_ROWS, "3": MAX_ROWS, "4": 20}
    assert weights.limits(claims(10, 10**12), 5.0)["1"] == 10  # half of the nodes may lie
    assert weights.limits(claims(10, 12, 10**12), 0.0)["2"] == MAX_ROWS
    assert weights.limits(claims(0, 10, 12), 5.0) == {"0": MAX_ROWS, "1": MAX_ROWS, "2": MAX_ROWS}
    assert weights.limits({}, 5.0) == {}


@pytest.mark.parametrize("split", ["iid", "dirichlet", "linear", "square", "staircase", "shards"])
@pytest.mark.parametrize("nodes", [10, 16])
def test_no_split_of_the_digits_goes_beyond_the_ratio(split: str, nodes: int) -> None:
    for alpha in (0.1, 0.5):
        task = RunConfig.read({"data.partitioner": split, "data.alpha": alpha}).task
        try:
            parts = partition(task, outline(task, server_store()), nodes, server_store())
        except SplitError:
            continue  # square with 16 nodes leaves some without rows
        assert set(weights.limits(claims(*map(len, parts)), 5.0).values()) == {MAX_ROWS}


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


def test_a_node_that_claims_a_million_million_rows_does_not_decide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen 7: it moved everything."""
    honest = hold(tmp_path / "honest", FIVE)
    outcome = hold(tmp_path / "lied", FIVE, spoil=claiming(10**12))
    assert [line["metrics"]["num-examples"] < 100 for line in outcome.rounds[1]["nodes"]] == [True] * 5
    assert along(outcome, honest) > 0.5
    believed = hold(tmp_path / "believed", FIVE | {"max-weight-ratio": 0.0}, spoil=claiming(10**12))
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


def test_scores_weigh_no_more_than_updates(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        answer = claiming(10**12)(partition, kind, answer)
        return changed(accuracy=1.0)(answer) if partition == 1 and kind == "evaluate" else answer

    outcome = hold(tmp_path, FIVE | {"evaluate": "nodes"}, spoil=spoil)
    honest = hold(tmp_path / "honest", FIVE | {"evaluate": "nodes", "num-server-rounds": 1})
    assert outcome.rounds[0]["accuracy"] - honest.rounds[0]["accuracy"] < 0.6
    assert outcome.rounds[0]["nodes-num-examples"] < 100


# ---------------------------------------------------------------------- scores


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

    outcome = hold(tmp_path, FIVE | {"evaluate": "nodes", "num-server-rounds": 1}, spoil=spoil)
    assert 0 <= outcome.rounds[-1]["accuracy"] <= 1
    assert any("node 1 did not evaluate" in record.message and words in record.message for record in caplog.records)


def test_a_loss_of_training_that_cannot_be_is_refused(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        return changed(train_loss=1e30)(answer) if (partition, kind) == (1, "train") else answer

    outcome = hold(tmp_path, FIVE, spoil=spoil)
    refused = {line["node"]: line["refused"] for line in outcome.rounds[1]["nodes"] if line["refused"]}
    assert refused == {"1": "metric 'train-loss' is 1e+30, not from 0 to 1e+06"}
    assert outcome.rounds[1]["train-loss"] < 10


# ---------------------------------------------------------------------- how a run ends


def broken(partition: int, kind: str, answer: Message) -> Message:
    if kind == "train":
        raise ValueError("no luck")
    return answer


def test_a_resumed_run_whose_rounds_all_fail_has_failed(tmp_path: Path) -> None:
    """Seen 10: it said `completed`."""
    folder = hold(tmp_path, FIVE).folder
    with pytest.raises(RunFailed, match="1 failed rounds in a row, the last because 0 of 5 replies were good"):
        resumed(folder, {"num-server-rounds": 3}, InProcessGrid(client_app.app, 5, spoil=broken))
    summary, rounds = left(tmp_path)
    assert (summary["status"], summary["failed-rounds"], summary["rounds"]) == ("failed", 1, 3)
    assert rounds[3]["failed"]
    assert (folder / "model" / "best").exists()
    assert resumed(folder, {"num-server-rounds": 4}).summary["status"] == "completed"

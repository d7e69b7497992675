"""Replies in the right form that lie: about rows, in numbers that overflow, with more than was asked, in scores."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from in_process import federate, retold
from test_validation import ASSIGNMENT, HEAD, METRICS, A, B, delta, instruction, reason, reply, validate  # noqa: F401

import strategies
from strategies.exchange.types import Outgrown, Refused, State
from strategies.protocol import wire
from strategies.rounds import validation
from task.kinds.registry import load

FIVE: dict[str, Any] = {"simulation.num-supernodes": 5, "tuning": "head", "min-success-fraction": 0.25}


def changed(**metrics: Any) -> Callable[[Message], Message]:
    """The reply with other metrics; None takes one away."""

    def change(answer: Message) -> Message:
        own = {**answer.content.metric_records["metrics"], **{k.replace("_", "-"): v for k, v in metrics.items()}}
        answer.content["metrics"] = MetricRecord({name: value for name, value in own.items() if value is not None})
        return answer

    return change


# ---------------------------------------------------------------------- rows


def test_more_rows_than_it_said(instruction: Message) -> None:  # noqa: F811
    strategy = strategies.load("rbla")
    state = State({A: torch.ones(3, 4), B: torch.ones(5, 3), HEAD: torch.ones(2, 5, dtype=torch.bfloat16)})
    good = reply(instruction, delta())
    assert validation.validate_update(strategy, good, "7", ASSIGNMENT, state, rows=10).weight == 10
    with pytest.raises(Outgrown, match="num-examples is 10, but its profile says 9 rows"):
        validation.validate_update(strategy, good, "7", ASSIGNMENT, state, rows=9)


def test_a_node_that_claims_all_rows_does_not_count(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        return changed(num_examples=10**12)(answer) if (partition, kind) == (1, "train") else answer

    rounds = federate(tmp_path, FIVE, spoil=spoil).rounds
    refused = {line["node"]: line["refused"] for line in rounds[1]["nodes"] if line["refused"]}
    assert list(refused) == ["1"]
    assert "num-examples is 1000000000000, but its profile says" in refused["1"]


@pytest.mark.slow
def test_a_node_whose_data_grew_is_asked_again_and_counts(tmp_path: Path) -> None:
    """It loses one round."""
    asked: list[int] = []

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if partition == 1 and kind == "query.profile":
            asked.append(answer.content.config_records["profile"]["num-examples"])  # type: ignore[arg-type]
            if len(asked) == 1:
                answer.content.config_records["profile"]["num-examples"] = 1
        return answer

    rounds = federate(tmp_path, FIVE | {"num-server-rounds": 3}, spoil=spoil).rounds
    of = [next(line["refused"] for line in entry["nodes"] if line["node"] == "1") for entry in rounds[1:]]
    assert len(asked) == 2
    assert "its profile says 1 rows" in of[0]
    assert of[1:] == ["", ""]


@pytest.mark.first(1)
@pytest.mark.parametrize("evaluate", ["nodes", "both"])
def test_an_honest_holdout_is_within_what_was_said(tmp_path: Path, evaluate: str) -> None:
    rounds = federate(tmp_path, FIVE | {"evaluate": evaluate}).rounds
    assert not any(line["refused"] for line in rounds[1]["nodes"])
    assert rounds[1]["nodes-num-examples"] > 0


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", [1e13, -1e13, 3e38])
def test_no_number_is_larger_than_what_sums_survive(instruction: Message, value: float) -> None:  # noqa: F811
    assert "the largest number allowed in an update is 1e+12" in reason(
        reply(instruction, delta(**{A: torch.full((2, 4), value)}))
    )
    assert validate(reply(instruction, delta(**{A: torch.full((2, 4), 1e11)})))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float64])
def test_every_dtype_is_measured(instruction: Message, dtype: torch.dtype) -> None:  # noqa: F811
    strategy, state = strategies.load("fedavg"), State({"w": torch.zeros(3).to(dtype)})
    with pytest.raises(Refused, match="'w' holds"):
        validation.validate_update(
            strategy, reply(instruction, {"w": torch.full((3,), -(2**62)).to(dtype)}), "7", ASSIGNMENT, state
        )


def test_an_update_does_not_overflow_the_state(instruction: Message) -> None:  # noqa: F811
    strategy, state = strategies.load("fedavg"), State({"w": torch.full((3,), 6e4, dtype=torch.float16)})
    sent = {"w": torch.full((3,), 6e4, dtype=torch.float16)}
    with pytest.raises(Refused, match=r"'w' is beyond torch\.float16 once this update is added"):
        validation.validate_update(strategy, reply(instruction, sent), "7", ASSIGNMENT, state)


def test_a_bool_is_zero_or_one(instruction: Message) -> None:  # noqa: F811
    records = wire.pack(State({"w": torch.tensor([2, 1, 0], dtype=torch.uint8)}))
    text = zlib.decompress(records.config_records["index"]["index"]).replace(b"uint8", b"bool")  # type: ignore[arg-type]
    records["index"] = ConfigRecord({"index": zlib.compress(text)})
    with pytest.raises(Refused, match="a bool is 0 or 1, not 2"):
        wire.unpack(records)


# ---------------------------------------------------------------------- more than was asked


def test_records_and_arrays_that_nobody_asked_for(instruction: Message) -> None:  # noqa: F811
    more = reply(instruction, delta())
    more.content["diary\x1b[2J"] = ConfigRecord({"x": 1})
    assert "not asked for" in reason(more)
    arrays = reply(instruction, delta())
    flat = arrays.content.array_records["arrays"]["flat"]
    arrays.content["arrays"] = ArrayRecord({"flat": flat, "second": flat})
    assert "'second' is next to 'flat'" in reason(arrays)


def test_an_index_is_no_larger_than_the_update_needs(instruction: Message) -> None:  # noqa: F811
    bomb = reply(instruction, delta())
    bomb.content["index"] = ConfigRecord({"index": zlib.compress(b" " * 2**20)})
    assert "the index is larger than 16" in reason(bomb)
    names = {f"{number:x}": torch.zeros(0) for number in range(10_000)}
    assert "the index is larger than 16" in reason(reply(instruction, names))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({f"m{n}": 1.0 for n in range(100)}, "more than 64"),
        ({"m": 1e200}, "larger than 1e+100"),
        ({"m\n": 1.0}, "is not a valid metric name"),
        ({"": 1.0}, "is not a valid metric name"),
        ({"x" * 81: 1.0}, "is not a valid metric name"),
        ({"<script>": 1.0}, "is not a valid metric name"),
    ],
)
def test_metrics_are_few_small_and_named(instruction: Message, metrics: dict[str, float], words: str) -> None:  # noqa: F811
    assert words in reason(reply(instruction, delta(), METRICS | metrics))


# ---------------------------------------------------------------------- scores

SCORES = {"num-examples": 4, "server-round": 2, "loss": 0.5, "accuracy": 0.5}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_examples": -4}, "num-examples must be a positive whole number"),
    ({"num_examples": 10**9}, "but its profile says"),
    ({"num_examples": None}, "num-examples must be a positive whole number"),
    ({"accuracy": None}, "metric 'accuracy' missing"),
    ({"loss": float("nan")}, "metric 'loss' is nan"),
    ({"server_round": 0}, "it answers a round other"),
]


@pytest.mark.first(1)
@pytest.mark.parametrize(("metrics", "words"), BAD)
def test_scores_that_lie_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metrics: dict[str, Any], words: str
) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        return changed(**metrics)(answer) if (partition, kind) == (1, "evaluate") else answer

    rounds = federate(tmp_path, FIVE | {"evaluate": "nodes"}, spoil=spoil).rounds
    assert 0 <= rounds[-1]["accuracy"] <= 1
    assert any("node 1 did not evaluate" in record.message and words in record.message for record in caplog.records)


def test_good_scores_are_accepted(instruction: Message) -> None:  # noqa: F811
    unasked = {"rouge-l": 1.0}
    good = Message(RecordDict({"metrics": MetricRecord(SCORES | unasked)}), reply_to=instruction)
    assert validation.validate_scores(good, load("image-classification").metrics, 2, rows=4) == {
        "num-examples": 4,
        "loss": 0.5,
        "accuracy": 0.5,
    }


# ---------------------------------------------------------------------- profiles


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rank", 10**9, "its profile says rank = 1000000000, not a whole number from 0 to 1024"),
        ("rank", float("inf"), "its profile says rank = inf"),
        ("num-examples", -1, "its profile says num-examples = -1"),
        ("name", "\x1b[2Jevil", "its profile says name = '\\x1b[2Jevil', not a text"),
        ("name", "", "its profile says name = ''"),
        ("name", "x" * 10_000, "its profile says name = 'xxx"),
        ("store", 7, "its profile says store = 7"),
        ("bases", "abc", "its profile says bases = 'abc'"),
        ("named-base", "0" * 32, f"its profile says named-base = '{'0' * 32}', which is none of its bases"),
        ("automatic", "yes", "its profile says automatic = 'yes'"),
    ],
)
def test_a_node_is_left_out_for_what_it_says_of_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: Any, words: str
) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if (partition, kind) == (3, "query.profile"):
            answer.content.config_records["profile"][key] = value
        return answer

    rounds = federate(tmp_path, FIVE, spoil=spoil).rounds
    assert [line["node"] for line in rounds[1]["nodes"]] == ["0", "1", "2", "4"]
    assert any("left out node" in record.message and words in record.message for record in caplog.records)


def test_the_report_shows_what_a_node_said_as_text(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        return (
            retold(answer, lambda ts: ts | {"<script>alert(1)</script>": torch.ones(1)}) if kind == "train" else answer
        )

    def some(partition: int, kind: str, answer: Message) -> Message:
        return spoil(partition, kind, answer) if partition == 1 else answer

    own = {1: {"name": "<b>clinic</b>"}}
    page = (federate(tmp_path, FIVE, spoil=some, node_configs=own).folder / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>clinic" not in page
    assert "&lt;b&gt;clinic&lt;/b&gt;" in page

"""Who gets which rank: the rule and its laws, settings, and trials on real nodes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message
from hypothesis import given
from hypothesis import strategies as st
from in_process import QV, InProcessGrid, equal, federate

import client_app
from client_app.device import _trains, dtypes, free_memory
from strategies.algebra.lowrank import truncated
from strategies.exchange.types import Refused
from strategies.protocol.trial import Trial
from strategies.rounds.handshake.ranks import DEADLINE, LARGEST, MEMORY, MEMORY_SHARE, TIME_SHARE, Choice, choose
from task.config import TaskConfig
from task.device import found
from task.models.base import Base
from task.models.model import TunedModel, tuned_model
from task.schema import ConfigError, flatten
from thistledown.commands.check import check
from thistledown.settings import Settings

CANDIDATES = (2, 4, 8, 16)
TRIAL = Trial(ranks=(2, 16), seconds=(0.1, 0.24), bytes=(1000, 2400), free=10**9, steps=10)  # 10 ms and 100 B a rank
HOUR = 3600.0


# ---------------------------------------------------------------------- the rule
@pytest.mark.parametrize(
    ("free", "deadline", "choice"),
    [
        (10**9, HOUR, Choice(16, LARGEST)),
        (2400 / MEMORY_SHARE, HOUR, Choice(16, LARGEST)),
        (2399 / MEMORY_SHARE, HOUR, Choice(8, MEMORY)),
        (1000 / MEMORY_SHARE, HOUR, Choice(2, MEMORY)),
        (999 / MEMORY_SHARE, HOUR, Choice(2, MEMORY, fits=False)),
        (10**9, 1.7 / TIME_SHARE, Choice(8, DEADLINE)),
        (10**9, 0.5 / TIME_SHARE, Choice(2, DEADLINE, fits=False)),
        (1200 / MEMORY_SHARE, 1.7 / TIME_SHARE, Choice(4, MEMORY)),
    ],
)
def test_the_largest_rank_that_fits(free: float, deadline: float, choice: Choice):
    assert choose(replace(TRIAL, free=int(free)), CANDIDATES, deadline) == choice


def test_a_rank_that_the_node_could_not_try_is_out_of_the_question():
    assert choose(replace(TRIAL, ranks=(2, 4)), CANDIDATES, HOUR) == Choice(4, MEMORY)
    assert choose(Trial((2,), (0.1,), (1000,), 10**9, 10), CANDIDATES, HOUR) == Choice(2, MEMORY)
    assert choose(Trial((), (), (), 10**9, 10), CANDIDATES, HOUR) == Choice(2, MEMORY, fits=False)


candidates = st.lists(st.integers(1, 300), min_size=1, max_size=6, unique=True).map(sorted).map(tuple)


@st.composite
def trials(draw: st.DrawFn, ranks: tuple[int, ...]) -> Trial:
    ends = draw(st.sampled_from([(), ranks[:1], *((ranks[0], rank) for rank in ranks[1:])]))
    seconds = draw(st.tuples(*(st.floats(0, 100) for _ in ends)))
    sizes = draw(st.tuples(*(st.integers(0, 10**12) for _ in ends)))
    return Trial(ends, seconds, sizes, draw(st.integers(0, 10**12)), draw(st.integers(1, 1000)))


@given(data=st.data(), ranks=candidates, deadline=st.floats(0.1, 1e5))
def test_more_memory_time_or_speed_never_gives_a_smaller_rank(data: st.DataObject, ranks: tuple[int, ...], deadline):
    trial = data.draw(trials(ranks))
    rank = choose(trial, ranks, deadline).rank
    assert rank in ranks
    assert choose(replace(trial, free=trial.free + data.draw(st.integers(0, 10**12))), ranks, deadline).rank >= rank
    assert choose(trial, ranks, deadline + data.draw(st.floats(0, 1e5))).rank >= rank
    faster = tuple(seconds / 2 for seconds in trial.seconds)
    assert choose(replace(trial, seconds=faster), ranks, deadline).rank >= rank
    assert choose(replace(trial, steps=1), ranks, deadline).rank >= rank


@given(data=st.data(), ranks=candidates)
def test_a_trial_survives_the_trip(data: st.DataObject, ranks: tuple[int, ...]):
    trial = data.draw(trials(ranks))
    assert Trial.read(trial.record(), ranks) == trial


@pytest.mark.parametrize(
    "changed",
    [
        {"ranks": [2]},
        {"ranks": [4, 16]},
        {"ranks": [16, 2]},
        {"ranks": [2, 3]},
        {"seconds": [float("nan"), 0.1]},
        {"seconds": [0.1, float("inf")]},
        {"bytes": [-1, 0]},
        {"bytes": ["much", "more"]},
        {"bytes": 7},
        {"free": "all"},
    ],
    ids=str,
)
def test_a_trial_that_makes_no_sense_is_refused(changed: dict[str, Any]):
    with pytest.raises(Refused, match="its trial is"):
        Trial.read(ConfigRecord({**TRIAL.record(), **changed}), CANDIDATES)


# ---------------------------------------------------------------------- settings
def test_auto_next_to_numbers():
    ranks = [TaskConfig.read({"lora.ranks": said}).tuning.budgets() for said in (8, "8", "2,4,8", "auto", " auto ")]
    assert ranks == [(8,), (8,), (2, 4, 8), (), ()]
    assert flatten(TaskConfig.read({"lora.ranks": "auto"}), changed_only=True) == {"lora.ranks": "auto"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lora.ranks", "", "such as '2,4,8', or 'auto', not ''"),
        ("lora.ranks", "automatic", "such as '2,4,8', or 'auto', not 'automatic'"),
        ("lora.ranks", "2,auto", "such as '2,4,8', or 'auto', not '2,auto'"),
        ("lora.auto-ranks", "auto", "must be whole numbers separated by ',', such as '2,4,8', not 'auto'"),
        ("lora.auto-ranks", "", "lora.auto-ranks must be ascending"),
        ("lora.auto-ranks", "8,4", "lora.auto-ranks must be ascending"),
        ("lora.auto-ranks", "4,4", "lora.auto-ranks must be ascending"),
        ("lora.auto-ranks", "0,4", "lora.auto-ranks must be at least 1, not 0"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(key: str, value: str, said: str):
    with pytest.raises(ConfigError) as error:
        TaskConfig.read({key: value})
    assert said in str(error.value)


def test_check_says_what_auto_means(tmp_path: Path):
    lines: list[str] = []
    said = "lora.ranks='auto' lora.auto-ranks='3,5' simulation.num-supernodes=2"
    check(Settings.read(None, None, [said], tmp_path), lines.append)
    text = "\n".join(lines)
    assert "a node trains a few steps at ranks 3 and 5, and gets the largest" in text
    assert f"fits {MEMORY_SHARE:.0%} of its free memory and {TIME_SHARE:.0%} of round-timeout" in text
    assert "sends a node of rank 5 " in text


# ---------------------------------------------------------------------- trials
@pytest.mark.slow
def test_every_node_tries_the_ends_and_gets_the_largest(tmp_path: Path):
    outcome = federate(tmp_path, QV | {"strategy": "rbla", "lora.ranks": "auto", "lora.auto-ranks": "2,4,6"})
    assert outcome.summary["ranks"] == {"0": 6, "1": 6, "2": 6}
    kinds = [kind for _, kind in outcome.grid.log if kind != "query.base"]
    assert kinds == ["query.profile"] * 3 + ["query.trial"] * 3 + ["train"] * 3
    for exchange in outcome.grid.of("query.trial"):
        trial = Trial.read(exchange.reply["trial"], (2, 4, 6))
        assert trial.ranks == (2, 6)
        assert all(seconds > 0 for seconds in trial.seconds)
        assert trial.steps == 2
    for exchange in outcome.grid.of("query.profile"):
        profile = exchange.reply["profile"]
        assert (profile["automatic"], profile["rank"], profile["device"]) == (True, 0, found("auto"))
        assert profile["memory"] > 0


def test_bytes_are_at_least_what_a_rank_needs(tmp_path: Path):
    """At least five times all that trains: itself, a gradient, a copy, two moments. Then activations."""
    outcome = federate(tmp_path, QV | {"lora.ranks": "auto", "lora.auto-ranks": "2,6", "simulation.num-supernodes": 1})
    trial = Trial.read(outcome.grid.of("query.trial")[0].reply["trial"], (2, 6))
    tensors = outcome.state().tensors
    for rank, size in zip(trial.ranks, trial.bytes, strict=True):
        least = 5 * sum(tensor.nbytes for tensor in truncated(tensors, rank).values())
        assert least < size < 10**9
    assert trial.bytes[0] <= trial.bytes[1]


@pytest.mark.slow
def test_a_trial_leaves_no_trace_in_training(tmp_path: Path):
    """The same federation with the ranks written down sends the same bits."""
    said = federate(tmp_path / "said", QV | {"strategy": "rbla", "lora.ranks": "4"})
    tried = federate(tmp_path / "tried", QV | {"strategy": "rbla", "lora.ranks": "auto", "lora.auto-ranks": "2,4"})
    assert equal(said.state().tensors, tried.state().tensors)


def test_one_automatic_node_among_fixed_ones(tmp_path: Path):
    options = QV | {"strategy": "rbla", "lora.ranks": "3", "lora.auto-ranks": "2,5"}
    outcome = federate(tmp_path, options, node_configs={1: {"rank": "auto"}, 2: {"rank": 1}})
    assert outcome.summary["ranks"] == {"0": 3, "1": 5, "2": 1}
    assert [exchange.partition for exchange in outcome.grid.of("query.trial")] == [1]


@pytest.mark.slow
def test_a_node_that_joins_later_runs_a_trial_and_keeps_its_rank(tmp_path: Path):
    """Once: under its name it has the same rank in the whole run, wherever it was restarted."""

    class Late(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            self.away = set() if self.of("train") else {0}
            if len(self.of("train")) == 5:  # after round 2
                self.restart(0)
            return super().get_node_ids()

    grid = Late(client_app.app, 3)
    options = {"lora.ranks": "auto", "lora.auto-ranks": "2,4", "num-server-rounds": 3}
    outcome = federate(tmp_path, QV | options, grid)
    assert sorted(exchange.partition for exchange in grid.of("query.trial")) == [0, 1, 2]
    assert [[line["rank"] for line in entry["nodes"]] for entry in outcome.rounds[1:]] == [[4] * 2, [4] * 3, [4] * 3]


@pytest.mark.slow
def test_a_rank_whose_model_no_memory_holds_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model of the largest candidate cannot even be built; the next smaller can be."""

    def built(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
        torch.empty(10**15 if rank == 1024 else 0)  # which torch itself finds too much
        return tuned_model(base, config, rank, device)

    monkeypatch.setattr("client_app.trial.tuned_model", built)
    outcome = federate(tmp_path, QV | {"lora.ranks": "auto", "lora.auto-ranks": "2,4,1024"})
    assert outcome.summary["ranks"] == {"0": 4, "1": 4, "2": 4}
    assert Trial.read(outcome.grid.of("query.trial")[0].reply["trial"], (2, 4, 1024)).ranks == (2, 4)


def test_a_node_that_cannot_even_try_gets_the_smallest(tmp_path: Path):
    def fail(partition: int, kind: str, reply: Message) -> Message:
        if (partition, kind) == (1, "query.trial"):
            raise ValueError("no time for that")
        return reply

    options = QV | {"strategy": "rbla", "lora.ranks": "auto", "lora.auto-ranks": "2,4"}
    outcome = federate(tmp_path, options, spoil=fail)
    assert outcome.summary["ranks"] == {"0": 4, "1": 2, "2": 4}


def test_nodes_without_adapters_run_no_trial(tmp_path: Path):
    outcome = federate(tmp_path, {"tuning": "bias", "lora.ranks": "auto"}, node_configs={1: {"rank": "auto"}})
    assert not outcome.grid.of("query.trial")
    assert set(outcome.summary["ranks"].values()) == {0}


@pytest.mark.first(1)
@pytest.mark.parametrize("rank", ["eight", 0, True, 2.5])
def test_a_node_with_a_bad_rank_is_left_out(tmp_path: Path, rank: object):
    outcome = federate(tmp_path, QV, node_configs={1: {"rank": rank}})
    assert set(outcome.summary["ranks"]) == {"0", "2"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_leaves_its_node_out(tmp_path: Path):
    outcome = federate(tmp_path, QV, node_configs={1: {"device": "cuda"}})
    assert set(outcome.summary["ranks"]) == {"0", "2"}
    assert len(outcome.grid.of("train")) == 2


def test_a_device_that_lacks_the_models_dtype_is_left_out(tmp_path: Path):
    def poorer(partition: int, kind: str, reply: Message) -> Message:
        if (partition, kind) == (1, "query.profile"):
            reply.content["profile"]["dtypes"] = ["float16"]
        return reply

    assert set(federate(tmp_path, QV, spoil=poorer).summary["ranks"]) == {"0", "2"}


def test_what_the_cpu_has():
    assert "float32" in dtypes("cpu")
    assert free_memory("cpu") > 0


def test_a_process_tries_its_device_once(monkeypatch: pytest.MonkeyPatch):
    found = dtypes("cpu")
    monkeypatch.setattr("torch.nn.functional.layer_norm", None)
    assert dtypes("cpu") == found


def test_a_full_device_is_not_said_to_lack_a_dtype(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    _trains.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.layer_norm", full)
        with pytest.raises(torch.OutOfMemoryError):
            dtypes("cpu")
    assert "float32" in dtypes("cpu")

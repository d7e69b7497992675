"""Who does harm is left out: judged by the server's own rows, over rounds, and never an honest node of one class."""

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import attack
from in_process import QV, Outcome, equal, federate
from test_attacks import LIARS, ROUNDS, TEN

from server_app.evaluation import Evaluator, balanced
from strategies.flora import Flora
from strategies.rounds.defence import examination
from strategies.rounds.defence.influence import (
    AT_ONCE,
    LESS,
    REVERSED,
    SHARE,
    Losses,
    Tally,
    changes,
    relieved,
    reversal,
)
from strategies.rounds.run_state import RunState

ONE_CLASS: dict[str, Any] = {"data.partitioner": "shards", "data.shards-per-node": 1}
FEW: dict[str, Any] = TEN | {"num-server-rounds": 4}
ADAPTERS: dict[str, Any] = FEW | QV | {"tuning": "lora", "local-steps": 4, "batch-size": 8, "learning-rate": 0.01}
OF: dict[str, dict[str, Any]] = {
    "fedavg": FEW,
    "rbla": ADAPTERS | {"lora.ranks": "2,4,8"},
    "flora": ADAPTERS | {"lora.ranks": "2,4,8"},
    "ferret": FEW | {"tuning": "full", "local-steps": 4, "learning-rate": 0.003},
}


def reasons(outcome: Outcome) -> dict[str, str]:
    """Why replies did not count, by node; the last reason of each."""
    return {own["node"]: own["refused"] for line in outcome.rounds for own in line["nodes"] if own["refused"]}


@pytest.fixture(autouse=True)
def foreseeable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No round is examined by chance."""
    monkeypatch.setattr(examination, "CHANCE", 0.0)


# ---------------------------------------------------------------------- runs


@pytest.mark.judged
@pytest.mark.slow
@pytest.mark.parametrize("strategy", OF)
def test_two_that_collude_are_left_out_of_every_strategy(strategy: str, tmp_path: Path) -> None:
    options = OF[strategy] | {"strategy": strategy, "evaluate-every": 4}
    outcome = federate(tmp_path / "on", options, spoil=attack("collude", strategy, LIARS, 4))
    off = federate(tmp_path / "off", options | {"examine-rows": 0}, spoil=attack("collude", strategy, LIARS, 4))
    assert "1" in reasons(outcome)
    if strategy != "rbla":  # whose few nodes of the largest rank may do harm in a round where nobody means it
        assert reasons(outcome).keys() <= {"1", "4"}
    assert re.search(
        r"does harm: the loss on the server's rows is .*, without .* rounds it undid", reasons(outcome)["1"]
    )
    assert outcome.rounds[-1]["loss"] < off.rounds[-1]["loss"] - 0.3
    assert outcome.summary["status"] == "completed"


@pytest.mark.slow
def test_the_opposite_of_what_was_learned_is_left_out_from_the_first_round_on(tmp_path: Path) -> None:
    outcome = federate(tmp_path, FEW, spoil=attack("flip 1", "fedavg", LIARS, 4))
    for line in outcome.rounds[1:]:
        assert {own["node"] for own in line["nodes"] if own["refused"]} == {str(node) for node in LIARS}


@pytest.mark.judged
@pytest.mark.slow
def test_a_late_poisoning_is_left_out_of_its_own_rounds(tmp_path: Path) -> None:
    """Who did good for rounds is not harmful, but a round that is clearly worse is combined without it. The first of
    the three may be only somewhat worse, and stay; the next cannot be that too."""
    outcome = federate(tmp_path, TEN, spoil=attack("poison late", "fedavg", LIARS, ROUNDS))
    refused = {line["round"]: {own["node"] for own in line["nodes"] if own["refused"]} for line in outcome.rounds[1:]}
    assert set().union(*refused.values()) == {"1", "4"}
    assert (
        {ROUNDS - 1, ROUNDS} <= {round for round, nodes in refused.items() if nodes} <= {*range(ROUNDS - 2, ROUNDS + 1)}
    )
    assert outcome.rounds[-1]["accuracy"] > outcome.rounds[ROUNDS - 3]["accuracy"] - 0.05


@pytest.mark.slow
def test_honest_nodes_of_the_default_split_leave_the_bits_that_they_left(tmp_path: Path) -> None:
    plain = federate(tmp_path / "plain", FEW | {"examine-rows": 0})
    outcome = federate(tmp_path / "examined", FEW)
    assert not reasons(outcome)
    assert equal(outcome.state().tensors, plain.state().tensors)
    assert [line["loss"] for line in outcome.rounds] == [line["loss"] for line in plain.rounds]


@pytest.mark.judged
@pytest.mark.slow
def test_honest_nodes_of_one_class_each_are_missed_by_nobody(tmp_path: Path) -> None:
    """What a round has too much of may be left out of it, but no class is lost to the run."""
    options = TEN | ONE_CLASS
    plain = federate(tmp_path / "plain", options | {"examine-rows": 0})
    outcome = federate(tmp_path / "examined", options)
    assert outcome.summary["final"] > plain.summary["final"] - 0.02
    for node in map(str, range(10)):
        counted = [not own["refused"] for line in outcome.rounds[1:] for own in line["nodes"] if own["node"] == node]
        assert sum(counted) >= ROUNDS / 2


@pytest.mark.slow
def test_a_journal_is_not_replayed_for_every_state_that_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each, from where the round began: rounds cost the same however many were before."""
    replayed: Counter[int] = Counter()
    replay, probe, number = Flora.replay, Evaluator.probe, [0]
    monkeypatch.setattr(Flora, "replay", lambda *given: (replayed.update([number[0]]), replay(*given))[1])

    def counted(evaluator: Evaluator, start: Any) -> Any:
        number[0] += 1
        return probe(evaluator, start)

    monkeypatch.setattr(Evaluator, "probe", counted)
    federate(tmp_path, OF["flora"] | {"strategy": "flora", "evaluate-every": 4})
    assert set(replayed) == {1, 2, 3, 4}
    assert replayed[4] <= replayed[2] + 10  # whom it suspects differs


@pytest.mark.slow
def test_half_of_the_nodes_are_never_left_out(tmp_path: Path) -> None:
    """Then nobody can tell who lies."""
    five = range(5)
    outcome = federate(tmp_path, FEW | {"num-server-rounds": 2}, spoil=attack("collude", "fedavg", five, 2))
    assert all(sum("does harm" in own["refused"] for own in line["nodes"]) < 5 for line in outcome.rounds[1:])


@pytest.mark.slow
def test_too_few_rows_and_too_many_bytes_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = FEW | {"num-server-rounds": 1}
    federate(tmp_path / "rows", one | {"data.validation-rows": 20})
    assert "single updates are not examined: of 20 validation rows" in caplog.text
    monkeypatch.setattr(examination, "ROOM", 1000)
    federate(tmp_path / "room", one)
    assert "round 1: single updates are not examined: they are more than 1000 bytes" in caplog.text


@pytest.mark.slow
def test_what_noise_hides_is_not_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = {"wrappers": "central-privacy", "central-privacy.noise": 1.0, "central-privacy.epsilon": 0.0}
    monkeypatch.setattr(Evaluator, "probe", lambda *_: pytest.fail("whether an update counts depends on others"))
    federate(tmp_path, FEW | private | {"num-server-rounds": 1})


@pytest.mark.slow
def test_most_that_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large cohort some, drawn anew: in time, all."""
    monkeypatch.setattr(examination, "MOST", 4)
    outcome = federate(tmp_path, FEW, spoil=attack("collude", "fedavg", LIARS, 4))
    assert reasons(outcome)
    assert reasons(outcome).keys() <= {"1", "4"}


# ---------------------------------------------------------------------- the rule


def of_equals(cohort: int, liars: int, gain: float = 1.0) -> Losses:
    """The losses where everything is straight: each honest update is worth gain / cohort, a liar's the opposite."""
    before, share = 5.0, gain / cohort
    after = before - share * (cohort - 2 * liars)
    without = {str(n): after - share if n < liars else after + share for n in range(cohort)}
    return Losses(before, after, without, {str(n): before + share / 4 for n in range(liars)})


def test_harm_is_what_an_honest_node_does_good() -> None:
    losses = of_equals(10, 2)
    harm = losses.harm(10)
    assert [round(harm[str(n)], 6) for n in (0, 1, 2, 9)] == [1.0, 1.0, -1.0, -1.0]
    assert losses.good == pytest.approx(0.7)


def test_what_alone_does_good_does_no_harm() -> None:
    """Too long a step, say: without it the loss would be lower, a quarter of it would have lowered it."""
    losses = Losses(5.0, 4.5, {"0": 4.0, "1": 4.6, "2": 4.6}, {"0": 4.9})
    assert losses.harm(3)["0"] < 0


def test_where_every_update_does_harm_nobody_stands_out() -> None:
    """A rate that is too high."""
    assert relieved(6.0, {"0": 5.5, "1": 5.5, "2": 5.4}) == pytest.approx({"0": 0.0, "1": 0.0, "2": 0.1})


def test_one_round_is_not_enough_for_the_opposite() -> None:
    tally = Tally()
    for number in range(1, 4):
        tally.add(1.0, 1.0)
        assert tally.harmful == (number >= AT_ONCE)
    tally.add(-1.0, 1.0)
    assert 1 < AT_ONCE < 2
    assert tally.share < SHARE
    assert not tally.harmful


def test_a_round_that_could_gain_nothing_proves_nothing() -> None:
    tally = Tally()
    for _ in range(20):
        tally.add(3.0, 0.0)
    assert not tally.harmful


@pytest.mark.parametrize("rows", [[10, 0, 0, 0], [6, 3, 1, 0], [7, 1, 1, 1]])
def test_labels_tell_the_opposite_of_an_update_from_one_of_few_labels(rows: list[int]) -> None:
    """Softmax regression with a bias per label: a node pulls its own labels up and pushes the others down."""
    labels = torch.arange(4)

    def losses(bias: torch.Tensor) -> list[float]:
        found = torch.nn.functional.cross_entropy(bias.expand(4, 4), labels, reduction="none")
        return found.double().tolist()

    start, own = torch.zeros(4), torch.tensor(rows, dtype=torch.float32)
    step = 0.5 * (own / own.sum() - torch.softmax(start, 0))
    honest = changes(losses(start), losses(start + step))
    opposite = changes(losses(start), losses(start - step))
    assert reversal(honest) < 0 < reversal(opposite)
    assert sum(honest) > 0  # on rows of all labels alike, both do harm
    assert sum(opposite) > 0


def test_the_lower_reversal_counts() -> None:
    assert reversal([3.0, -1.0]) == pytest.approx(0.5)
    assert reversal([-3.0, -1.0]) == -1.0
    assert reversal([3.0, 1.0]) == 1.0
    assert reversal([3.0, 1.0], [3.0, -1.0]) == pytest.approx(0.5)
    assert reversal([0.0, 0.0]) == 0.0
    assert reversal([2.0]) == 0.0  # without a second label there is nothing to compare


def test_a_reversed_update_needs_less_harm() -> None:
    tally = Tally()
    tally.add(LESS, 1.0, REVERSED)
    assert tally.harmful
    tally.add(LESS, 1.0, 0.0)
    assert not tally.harmful  # half of the reversal, over two rounds
    tally.add(LESS, 1.0, 2 * REVERSED)
    assert tally.harmful
    tally.add(-3 * LESS, 1.0, 2 * REVERSED)
    assert not tally.harmful  # it has done no harm


def test_tallies_are_kept_with_the_state() -> None:
    run_state = RunState(tallies={"a": Tally(1.0, 2.0, 3, -0.5)}, losses=[5.0, 2.0])
    back = RunState.read(json.loads(json.dumps(run_state.about())))
    assert back == run_state
    assert asdict(back.tallies["a"]) == {"harm": 1.0, "good": 2.0, "rounds": 3, "reversal": -0.5}
    about = run_state.about()
    del about["session"]["tallies"]["a"]["reversal"]  # as before it was measured
    assert RunState.read(about).tallies == {"a": Tally(1.0, 2.0, 3)}
    assert RunState.read({"session": {"token": "t", "round": 3, "rests": {}}}).tallies == {}


def test_a_sample_has_rows_of_every_label() -> None:
    labels = np.array([0] * 1000 + [1] * 5 + [2] * 20)
    drawn = balanced(labels, 30, seed=0)
    assert Counter(labels[drawn].tolist()) == {0: 13, 1: 5, 2: 12}
    assert (np.diff(drawn) > 0).all()
    assert not np.array_equal(drawn, balanced(labels, 30, seed=1))
    assert len(balanced(labels, 10**6, seed=0)) == len(labels)
    assert torch.equal(torch.from_numpy(balanced(labels, 30, 0)), torch.from_numpy(drawn))

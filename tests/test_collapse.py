"""A run that has lost what it had learned goes back, without those who led it astray; and people can go back too."""

import itertools
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from in_process import QV, InProcessGrid, Outcome, equal, federate, left, resumed, retold

import client_app
from server_app.config import RunConfig
from server_app.evaluation import Evaluator
from strategies.exchange.types import RunFailed, State
from strategies.fedavg import FedAvg
from strategies.protocol import checkpoint, wire
from strategies.rounds.defence import collapse
from strategies.rounds.defence.pulls import Pulls
from strategies.rounds.run_state import RunState
from task.schema import ConfigError

HEAD: dict[str, Any] = {
    "simulation.num-supernodes": 5,
    "tuning": "head",
    "num-server-rounds": 12,
    "data.train-rows": 300,
    "data.validation-rows": 60,
    "data.test-rows": 60,
    "local-steps": 8,
    "learning-rate": 0.03,
    "data.alpha": 5.0,  # rows nearly alike, so that an honest run does not swing
    "examine-rows": 0,  # else it does not come to a collapse
}
RESULTS = sorted((Path(__file__).parent.parent / "docs" / "results").glob("*.json"))


def flipped(first: int, nodes: set[int] = frozenset({1, 2}), by: float = -4.0) -> Any:  # type: ignore[assignment]
    """From a round on, some nodes send the opposite of what they learned, as long as the door lets through."""

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if kind != "train" or partition not in nodes:
            return answer
        if answer.content.metric_records["metrics"]["server-round"] < first:  # type: ignore[operator]
            return answer
        return retold(answer, lambda tensors: {name: tensor * by for name, tensor in tensors.items()})

    return spoil


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("attacked"), HEAD, spoil=flipped(9))


@pytest.mark.judged
@pytest.mark.slow
def test_a_collapsed_run_goes_back_without_those_who_led_it(attacked: Outcome) -> None:
    back = next(line for line in attacked.rounds if "rolled-back" in line)
    assert back["round"] == 10
    assert back["rolled-back"].endswith("to the state of round 8, without 1, 2 (who dominated the updates since then)")
    assert back["accuracy"] == attacked.rounds[8]["accuracy"]  # it is that state's
    assert [len(line["nodes"]) for line in attacked.rounds[9:]] == [5, 5, 3, 3]
    assert attacked.summary["rolled-back"] == {"10": back["rolled-back"]}
    assert attacked.summary["status"] == "completed"
    assert attacked.rounds[-1]["chosen-by"] > 0.45
    assert "back to the state of round 8" in (attacked.folder / "report.html").read_text()


@pytest.mark.slow
def test_who_was_left_out_gets_a_second_chance_by_a_resume(attacked: Outcome, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(attacked.folder, tmp_path / "copy"))
    more = resumed(folder, {"num-server-rounds": 13})
    assert len(more.rounds[-1]["nodes"]) == 5


@pytest.mark.judged
@pytest.mark.slow
def test_a_run_that_collapses_again_has_failed(tmp_path: Path) -> None:
    """Others take it up once the first two are out."""

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        way = flipped(9) if partition else flipped(16, {0}, -20.0)
        return way(partition, kind, answer)

    with pytest.raises(RunFailed, match="the run cannot continue: it collapsed 2 times"):
        federate(tmp_path, HEAD | {"num-server-rounds": 24, "outlier-factor": 30.0}, spoil=spoil)
    summary, rounds = left(tmp_path)
    assert summary["status"] == "failed"
    assert len(summary["rolled-back"]) == 2
    assert rounds[-1]["accuracy"] > 0.3  # the state that it leaves is a good one


@pytest.mark.slow
def test_if_the_culprit_is_unknown_all_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of strategies whose updates have nothing in common: Ferret's, each in a basis of its own."""
    monkeypatch.setattr(FedAvg, "comparable", lambda *_: {})
    with pytest.raises(RunFailed, match=r"as it is unknown who\); the run cannot continue: 0 nodes are left"):
        federate(tmp_path, HEAD, spoil=flipped(9))
    assert left(tmp_path)[0]["status"] == "failed"


@pytest.mark.slow
def test_a_run_goes_back_past_its_hand_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of SA-FedLoRA: the first round of adapters is undone, and the weights of the round before are handed over again,
    as the same entry, which nodes still have."""
    score, evaluations = Evaluator.__call__, itertools.count()

    def ruined(evaluator: Evaluator, state: State) -> dict[str, Any]:
        scores = score(evaluator, state)
        return scores | ({"validation-loss": math.nan} if next(evaluations) == 2 else {})

    def stronger(partition: int, kind: str, answer: Message) -> Message:
        round = answer.content.metric_records["metrics"]["server-round"] if kind == "train" else 0
        return flipped(2, {1}, by=4.0)(partition, kind, answer) if round == 2 else answer

    monkeypatch.setattr(Evaluator, "__call__", ruined)
    options = {"strategy": "sa-fedlora", "num-server-rounds": 4, "simulation.num-supernodes": 5, "lora.ranks": "4"}
    run = federate(tmp_path, options | QV, spoil=stronger)
    assert run.summary["rolled-back"].keys() == {"2"}
    assert run.summary["rolled-back"]["2"].endswith(
        "back to the state of round 1, without 1 (who dominated the updates since then)"
    )
    assert [len(line["nodes"]) for line in run.rounds[1:]] == [5, 5, 4, 4]
    assert not any(own["refused"] for line in run.rounds[1:] for own in line["nodes"])
    assert run.summary["status"] == "completed"
    (entry,) = [entry for entry in run.state().journal if entry.round == 1]
    handed = [own for one in run.grid.of("train") for own in wire.unpack(one.request).journal if own.round == 1]
    assert {own.digest for own in handed} == {entry.digest}
    assert len(handed) == 5  # once a node


@pytest.mark.slow
def test_states_are_kept_and_swept(attacked: Outcome) -> None:
    kept = sorted(path.name for path in (attacked.folder / "checkpoints").glob("round-*"))
    assert kept == ["round-11.safetensors", "round-12.safetensors"]


@pytest.mark.judged
@pytest.mark.slow
def test_nothing_is_kept_or_undone_where_nobody_wants_it(tmp_path: Path) -> None:
    outcome = federate(tmp_path, HEAD | {"collapse-factor": 0.0}, spoil=flipped(9))
    assert not list((outcome.folder / "checkpoints").glob("round-*"))
    assert not any("rolled-back" in line for line in outcome.rounds)
    assert outcome.rounds[-1]["chosen-by"] < 0.4


# ---------------------------------------------------------------------- the rule


def test_what_is_usual_is_the_worst_of_the_last_four() -> None:
    usual = [0.9, 0.8, 0.7, 0.8]
    assert collapse.bad(0.39, usual, 0.5, guessing=0.1)
    assert not collapse.bad(0.41, usual, 0.5, guessing=0.1)
    assert not collapse.bad(0.0, usual[1:], 0.5, guessing=0.1)  # too young
    assert not collapse.bad(0.1, [0.3] * 4, 0.5, guessing=0.1)  # it has hardly learned anything
    assert collapse.bad(math.nan, [], 0.5, guessing=0.1)
    assert collapse.bad(2.1, [1.0, 0.9, 0.8, 0.7], 0.5, guessing=None)
    assert not collapse.bad(1.9, [1.0, 0.9, 0.8, 0.7], 0.5, guessing=None)


def test_no_published_run_with_a_rate_that_works_has_collapsed() -> None:
    """659 honest runs, searches with rates that are far too large included: two would have gone back, at such rates."""
    runs = acted = 0
    for path in RESULTS:
        for run in json.loads(path.read_text())["runs"]:
            scores = [score for score in run["measured"].get("chosen-by") or [] if score is not None]
            losses, texts = "stories" in run["setting"], "minilm" in run["setting"]
            guessing = None if losses else 0.25 if texts else 0.1
            usual: list[float] = []
            sinking = [False]
            for score in scores:
                sinking.append(collapse.bad(score, usual, 0.65, guessing))
                usual += [] if sinking[-1] else [score]
            runs += bool(scores)
            acted += any(one and other for one, other in pairwise(sinking)) or sinking[-1]
    assert runs > 600
    assert acted <= 2


def test_pulls_tell_who_dominates() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(40, 50, generator=generator)
    pulls = Pulls()
    shapes = {"w": torch.Size((40, 50))}
    for node in range(8):
        own = common + torch.randn(40, 50, generator=generator)
        rank = 20 if node == 3 else 40
        pulls.see(str(node), 10.0, {"w": own[:rank]}, shapes)
    for node in ("8", "9"):
        pulls.see(node, 10.0, {"w": -4.5 * (common + torch.randn(40, 50, generator=generator))}, shapes)
    read = pulls.read()
    assert sum(pull for pull in read.values() if pull is not None) == pytest.approx(10)
    assert {node for node, pull in read.items() if pull is not None and pull > collapse.PULL} == {"8", "9"}
    pulls.see("10", 10.0, {}, shapes)
    assert set(pulls.read().values()) == {None}


# ---------------------------------------------------------------------- people go back


@pytest.mark.slow
def test_a_run_goes_on_from_its_best_state(tmp_path: Path) -> None:
    """After a poisoned end: what comes is what came after that round in the first place."""
    options = HEAD | {"num-server-rounds": 4, "collapse-factor": 0.0}
    whole = federate(tmp_path / "whole", options)
    ruined = federate(tmp_path / "ruined", options, spoil=flipped(4, by=-4.9))
    best = ruined.summary["best-round"]
    assert best == 3
    again = resumed(ruined.folder, {"resume-from": "best"}, InProcessGrid(client_app.app, 5, ids=1))
    assert equal(again.state().tensors, whole.state().tensors)
    assert [line["round"] for line in again.rounds] == [0, 1, 2, 3, 4]
    assert again.summary["resumed"] == [3]
    assert len((ruined.folder / "metrics-until-4.jsonl").read_text().splitlines()) == 5
    assert "resume-from" not in (again.folder / "config.toml").read_text()


@pytest.mark.slow
def test_a_run_resumes_from_a_saved_round(tmp_path: Path) -> None:
    run = federate(tmp_path, HEAD | {"num-server-rounds": 3})
    again = resumed(run.folder, {"resume-from": "2", "num-server-rounds": 4}, InProcessGrid(client_app.app, 5, ids=1))
    assert again.summary["resumed"] == [2]
    assert again.summary["rounds"] == 4
    with pytest.raises(ConfigError, match=r"resume-from = '1': there is no .*; this run has last, best, 3, 4"):
        resumed(run.folder, {"resume-from": "1", "num-server-rounds": 5})
    with pytest.raises(ConfigError, match="resume-from = 'worst' must be last, best or the number of a round"):
        RunConfig.read({"resume-from": "worst"})


@pytest.mark.judged
@pytest.mark.slow
def test_the_best_state_is_one_of_the_rounds_that_stay(tmp_path: Path) -> None:
    run = federate(tmp_path, HEAD | {"num-server-rounds": 3, "keep-checkpoints": 4})
    lines = [line["chosen-by"] for line in run.rounds]
    assert max(lines[:2]) < max(lines[2:])
    again = resumed(run.folder, {"resume-from": "1", "num-server-rounds": 3})
    assert checkpoint.about(run.folder / "checkpoints" / checkpoint.BEST)["round"] == again.summary["best-round"]


@pytest.mark.slow
def test_what_was_spent_of_a_budget_is_not_undone(tmp_path: Path) -> None:
    private = {"wrappers": "central-privacy", "central-privacy.noise": 1.0, "central-privacy.epsilon": 0.0}
    run = federate(tmp_path, HEAD | private | {"num-server-rounds": 3, "fraction-train": 0.6, "keep-checkpoints": 4})
    spent = [line["epsilon"] for line in run.rounds[1:]]
    again = resumed(run.folder, {"resume-from": "1"})
    assert again.rounds[-1]["epsilon"] > spent[-1]


def test_older_checkpoints_have_no_such_memory() -> None:
    run_state = RunState.read({"session": {"token": "t", "round": 3, "rests": {}}})
    assert (run_state.good, run_state.out, run_state.lengths, run_state.usual) == ([], {}, {}, [])

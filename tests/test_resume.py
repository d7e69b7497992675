"""Runs survive: a server that ends at any place, and another that goes on, leave the bits of one that never ended."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from in_process import QV, InProcessGrid, Outcome, equal, hold, resumed, suiting

import client_app
from server_app.config import RunConfig
from server_app.results import Results
from server_app.resuming import given
from strategies.exchange import checkpoint
from strategies.exchange.vocabulary import RunFailed
from task.schema import ConfigError
from thistledown.settings import Settings

APP = Path(__file__).parent.parent
ROUNDS = 3
RUNS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": "fedavg", "fraction-train": 0.5},
    "rbla": {"strategy": "rbla", "lora.ranks": "2,4,8"},
    "sa-fedlora": {"strategy": "sa-fedlora", "lora.ranks": "4,8", "sa-fedlora.heating": 0.0, "num-server-rounds": 4},
    "ferret": suiting("ferret") | {"strategy": "ferret", "ferret.momentum": 0.5},
    "ferret-pool": suiting("ferret") | {"strategy": "ferret", "ferret.momentum": 0.5, "ferret.seeds": "pool"},
    "fedex-lora": {"strategy": "fedex-lora"},
    "flora": {"strategy": "flora", "lora.ranks": "2,8"},
    "fedsa-lora": {"strategy": "fedsa-lora", "evaluate": "nodes"},
    "hetlora": {
        "strategy": "hetlora",
        "hetlora.gamma": 0.5,
        "hetlora.penalty": 10.0,
        "learning-rate": 0.02,
        "local-steps": 3,
    },  # nodes prune in round 2
    "quantize": {"wrappers": "quantize", "quantize.bits": 4},
    "top-k": {"strategy": "rbla", "lora.ranks": "2,8", "wrappers": "top-k,half"},
    "auto": {"strategy": "rbla", "lora.ranks": "auto", "lora.auto-ranks": "2,4"},
}


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL; only files are left."""


class Fragile(InProcessGrid):
    """Ends the server after so many looks for nodes, or replies to training. Node ids are others each time."""

    numbers = itertools.count(100)

    def __init__(self, looks: int = -1, trained: int = -1) -> None:
        super().__init__(client_app.app, 3, ids=next(self.numbers))
        self.looks, self.left = looks, trained
        self.spoil = self._spoil

    def get_node_ids(self) -> list[int]:
        self.looks -= 1
        if self.looks == -1:
            raise Killed
        return super().get_node_ids()

    def _spoil(self, partition: int, kind: str, reply: Message) -> Message:
        self.left -= kind == "train"
        if self.left == 0:
            raise Killed
        return reply


OPENING = 2  # looks for nodes before the first round


@pytest.fixture(autouse=True)
def dead_processes_write_no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = Results.__exit__
    monkeypatch.setattr(Results, "__exit__", lambda *a: None if a[1] is Killed else leave(*a))


def options(name: str) -> dict[str, Any]:
    return QV | {"num-server-rounds": ROUNDS} | RUNS[name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """The run that is not interrupted, once for every name."""
    known: dict[str, Outcome] = {}

    def run(name: str) -> Outcome:
        if name not in known:
            known[name] = hold(tmp_path_factory.mktemp(name), options(name))
        return known[name]

    return run


def killed(folder: Path, name: str, grids: Iterator[InProcessGrid]) -> tuple[Outcome, int]:
    """A run in `folder` on one grid after another, until it is over; and how often it was killed."""
    times = 0
    for grid in grids:
        try:
            place = folder / "latest"
            started = (place / "checkpoints" / checkpoint.LAST).exists()
            return (resumed(place.resolve(), None, grid) if started else hold(folder, options(name), grid)), times
        except Killed:
            times += 1
    raise AssertionError("the grids did not do")


QUALITY = ("round", "accuracy", "loss", "chosen-by", "train-loss", "inexactness", "failed", "parameters")


def assert_same_run(one: Outcome, other: Outcome) -> None:
    """State, best state, journal, what was measured, who trained what, to the last bit."""
    for which in ("last", "best"):
        assert equal(one.state(which).tensors, other.state(which).tensors)
        assert one.state(which).marks == other.state(which).marks
    for ours, theirs in zip(one.rounds, other.rounds, strict=True):
        assert [ours.get(key) for key in QUALITY] == [theirs.get(key) for key in QUALITY]
        assert [(n["node"], n["rank"], n["refused"]) for n in ours["nodes"]] == [
            (n["node"], n["rank"], n["refused"]) for n in theirs["nodes"]
        ]
    same = ("status", "base", "final", "best", "best-round", "rounds", "ranks", "failed-rounds", "parameters_up")
    assert [one.summary[key] for key in same] == [other.summary[key] for key in same]


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_every_boundary(name: str, whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """Each server does one round: it ends where the next would begin."""
    grids = (Fragile(looks=OPENING + (number > 0)) for number in itertools.count())
    outcome, times = killed(tmp_path, name, grids)
    total = options(name)["num-server-rounds"]
    assert times == total
    assert outcome.summary["resumed"] == list(range(total))
    assert_same_run(outcome, whole(name))


@pytest.mark.parametrize("name", RUNS)
def test_killed_in_the_middle_of_a_round(name: str, whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """In every round once, after two nodes have trained in it; what they kept of it does not count."""
    cohort = len(whole(name).rounds[1]["nodes"])
    grids = (Fragile(trained=2 if number == 0 else cohort + 2) for number in itertools.count())
    outcome, times = killed(tmp_path, name, grids)
    assert times == options(name)["num-server-rounds"]
    assert_same_run(outcome, whole(name))


def test_pruned_and_automatic_ranks_are_kept(whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """By name, over restarts of server and nodes; nobody tries ranks again."""
    assert [[node["rank"] for node in entry["nodes"]] for entry in whole("hetlora").rounds[2:]] == [[8] * 3, [4] * 3]
    folder = stopped(tmp_path, "auto")
    outcome = resumed(folder)
    assert len(whole("auto").grid.of("query.trial")) == 3
    assert not outcome.grid.of("query.trial")


def test_what_a_node_keeps_is_found_by_its_name_and_run(whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """Another run of the same configuration starts without it; a node of another name does too."""
    again = hold(tmp_path / "again", options("fedsa-lora"))
    assert_same_run(again, whole("fedsa-lora"))
    folder = stopped(tmp_path, "fedsa-lora")
    outcome = resumed(folder, None, InProcessGrid(client_app.app, 3, {1: {"name": "stranger"}}))
    assert not equal(outcome.state().tensors, again.state().tensors)


# ------------------------------------------------------------------------------- between two writes


def second_is_best(results: Results, line: dict[str, Any]) -> None:
    """Which round has the best state hangs on how a processor rounds; by this it is always round 2."""
    results.best = line if line["round"] <= 2 else results.best


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "_compare", second_is_best)
        return hold(tmp_path_factory.mktemp("never"), options("hetlora"))


@pytest.mark.parametrize("place", ["line", "half a line", "checkpoint", "best"])
def test_killed_between_two_writes(
    place: str, never_killed: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the line of round 2 and before its checkpoint; after that and before the best state."""
    save = checkpoint.save
    assert never_killed.summary["best-round"] == 2
    monkeypatch.setattr(Results, "_compare", second_is_best)

    def dying(path: Path, state: Any, about: dict[str, Any]) -> None:
        newest = path.name == checkpoint.LAST
        if about.get("round") == 2 and newest == (place != "best") and place != "checkpoint":
            if "line" in place:
                metrics = path.parent.parent / "metrics.jsonl"
                assert len(metrics.read_text().splitlines()) == 3
                if place == "half a line":
                    metrics.write_text(metrics.read_text()[:-20])
            raise Killed
        save(path, state, about)
        if about.get("round") == 2 and newest and place == "checkpoint":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying)
        with pytest.raises(Killed):
            hold(tmp_path, options("hetlora"))
    outcome = resumed((tmp_path / "latest").resolve())
    assert outcome.summary["resumed"] == [1 if "line" in place else 2]
    assert_same_run(outcome, never_killed)


def test_an_abandoned_round_cannot_have_replaced_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line said that it was the best, but it was not kept, and when it was done again it might be worse."""
    save = checkpoint.save
    kept: list[tuple[str, int]] = []

    def dying(path: Path, state: Any, about: dict[str, Any]) -> None:
        if (path.name, about.get("round")) == (checkpoint.LAST, 1):
            raise Killed
        save(path, state, about)
        if path.name in (checkpoint.LAST, "best.safetensors"):
            kept.append((path.name, about["round"]))

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(Killed):
        hold(tmp_path, options("fedavg"))
    assert kept == [(checkpoint.LAST, 0), ("best.safetensors", 0)]


# ------------------------------------------------------------------------------- what may be resumed


def stopped(folder: Path, name: str = "fedavg") -> Path:
    """The folder of a run that ended after round 1."""
    with pytest.raises(Killed):
        hold(folder, options(name), Fragile(looks=OPENING + 1))
    return (folder / "latest").resolve()


def test_more_rounds_may_be_asked_of_a_run_that_is_over(whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    over = hold(tmp_path, options("fedavg") | {"num-server-rounds": 2})
    with pytest.raises(ConfigError, match=r"nothing left to do: all 2 rounds of .* set num-server-rounds above 2"):
        resumed(over.folder)
    more = resumed(over.folder, {"num-server-rounds": ROUNDS})
    assert_same_run(more, whole("fedavg"))
    assert "num-server-rounds = 3" in (more.folder / "config.toml").read_text()
    assert "resume" not in (more.folder / "config.toml").read_text()


def test_another_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    changed = {"seed": 4, "learning-rate": 0.1, "strategy": "rbla", "device": "cpu", "round-timeout": 60.0}
    with pytest.raises(ConfigError) as raised:
        resumed(folder, changed)
    assert sorted(raised.value.problems) == [
        "learning-rate = 0.1, but the run to resume has 0.005",
        "seed = 4, but the run to resume has 0",
        "strategy = 'rbla', but the run to resume has 'fedavg'",
    ]
    with pytest.raises(ConfigError, match=r"num-server-rounds = 2, but the run to resume has 3; it may only have more"):
        resumed(folder, {"num-server-rounds": 2})
    assert resumed(folder, {"device": "cpu", "round-timeout": 60.0, "seed": 0}).summary["status"] == "completed"


def test_flower_fills_in_defaults_which_nobody_chose() -> None:
    config = Settings.read(APP, None, [], Path("/")).config.flat
    assert given(config | {"output-dir": ""}) == {}
    chosen = {"resume": "/r", "seed": 2, "lora.ranks": "8,4", "no-such-key": 0, "batch-size": "x"}
    assert given(config | {"output-dir": ""} | chosen) == chosen


def test_the_command_goes_on_with_the_runs_own_configuration(tmp_path: Path) -> None:
    """What is set on the command line counts as chosen, at its default too; paths are those of the current folder."""
    folder = stopped(tmp_path / "outputs", "rbla")

    def read(*overrides: str) -> RunConfig:
        return Settings.read(APP, None, list(overrides), tmp_path).config

    for word in ("latest", "outputs/latest", f"outputs/{folder.name}", str(folder)):
        found = read(f"resume='{word}' num-server-rounds=5")
        assert (found.server.resume, found.server.num_server_rounds) == (str(folder), 5)
        assert (found.strategy.name, found.task.lora.ranks) == ("rbla", (2, 4, 8))
        assert found.server.output_dir == str(tmp_path / "outputs")
    with pytest.raises(ConfigError, match=r"1 problem.*\n.*lora\.ranks = '8', but the run to resume has '2,4,8'"):
        read("resume='latest' lora.ranks='8'")
    with pytest.raises(ConfigError, match="num-server-rnds'; did you mean 'num-server-rounds'"):
        read("resume='latest' num-server-rnds=9")
    with pytest.raises(ConfigError, match="elsewhere is no results folder"):
        read("resume='elsewhere'")
    with pytest.raises(ConfigError, match="resume must be text, not 3"):
        read("resume=3")


def test_what_is_no_results_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no results folder"):
        resumed(tmp_path)
    folder = stopped(tmp_path)
    (folder / "checkpoints" / checkpoint.LAST).write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"cannot resume from .*last\.safetensors"):
        resumed(folder)
    with pytest.raises(ConfigError, match="must be an absolute path"):
        resumed(Path("latest"))


def test_lost_lines_are_said(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl lacks rounds up to 1"):
        resumed(folder)


def test_a_run_that_is_still_going_is_left_alone(tmp_path: Path) -> None:
    folder = stopped(tmp_path)

    class Busy(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            with pytest.raises(ConfigError, match="another process is at work in"):
                resumed(folder)
            raise Killed

    with pytest.raises(Killed):
        resumed(folder, None, Busy(client_app.app, 3))
    assert resumed(folder).summary["status"] == "completed"


def test_a_run_that_failed_may_fail_as_often_again(tmp_path: Path) -> None:
    def bad(partition: int, kind: str, reply: Message) -> Message:
        if kind == "train":
            raise ValueError("no luck")
        return reply

    run = options("fedavg") | {"num-server-rounds": 6, "max-failed-rounds": 2}
    with pytest.raises(RunFailed, match="2 failed rounds in a row"):
        hold(tmp_path, run, spoil=bad)
    folder = (tmp_path / "latest").resolve()
    with pytest.raises(RunFailed, match="2 failed rounds in a row"):
        resumed(folder, None, InProcessGrid(client_app.app, 3, spoil=bad))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [bool(line["failed"]) for line in lines] == [False, True, True, True, True]
    assert resumed(folder).summary["failed-rounds"] == 4


def test_what_is_spent_of_a_budget_is_kept(tmp_path: Path) -> None:
    """Noise is drawn anew, but the account goes on: as without the kill, and it ends the run where the budget ends."""
    private = {"wrappers": "central-privacy", "central-privacy.noise": 2.0, "central-privacy.epsilon": 8.0}
    run = options("fedavg") | private | {"fraction-train": 0.7, "num-server-rounds": 50}
    plain = hold(tmp_path / "whole", run)
    spent = [line["epsilon"] for line in plain.rounds if "epsilon" in line]
    assert 2 < len(spent) < 50
    with pytest.raises(Killed):
        hold(tmp_path, run, grid=Fragile(trained=4))
    outcome = resumed((tmp_path / "latest").resolve())
    assert [line["epsilon"] for line in outcome.rounds if "epsilon" in line] == spent
    assert outcome.summary["stopped"] == plain.summary["stopped"]
    with pytest.raises(RunFailed, match=r"nothing left to do: central-privacy.epsilon = 8 is spent"):
        resumed((tmp_path / "latest").resolve())

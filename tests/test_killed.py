"""Runs survive: a server that ends at any place, and another that goes on, leave the bits of one that never ended."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fragile import OPENING, RUNS, Fragile, Killed, assert_same_run, options, stopped
from in_process import InProcessGrid, Outcome, equal, federate, resumed

import client_app
from server_app.results.history import History
from strategies.protocol import checkpoint

pytestmark = pytest.mark.usefixtures("dead_servers_write_no_summary")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """The run that is not interrupted, once for every name."""
    known: dict[str, Outcome] = {}

    def run(name: str) -> Outcome:
        if name not in known:
            known[name] = federate(tmp_path_factory.mktemp(name), options(name))
        return known[name]

    return run


def killed(folder: Path, name: str, grids: Iterator[InProcessGrid]) -> tuple[Outcome, int]:
    """A run in `folder` on one grid after another, until it is over; and how often it was killed."""
    times = 0
    for grid in grids:
        try:
            place = folder / "latest"
            started = (place / "checkpoints" / checkpoint.LAST).exists()
            return (resumed(place.resolve(), None, grid) if started else federate(folder, options(name), grid)), times
        except Killed:
            times += 1
    raise AssertionError("the grids did not do")


@pytest.mark.first(1)
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_every_boundary(name: str, whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """Each server does one round: it ends where the next would begin."""
    grids = (Fragile(looks=OPENING + (number > 0)) for number in itertools.count())
    outcome, times = killed(tmp_path, name, grids)
    total = options(name)["num-server-rounds"]
    assert times == total
    assert outcome.summary["resumed"] == list(range(total))
    assert_same_run(outcome, whole(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_in_the_middle_of_a_round(name: str, whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """In every round once, after two nodes have trained in it; what they kept of it does not count."""
    cohort = len(whole(name).rounds[1]["nodes"])
    grids = (Fragile(trained=2 if number == 0 else cohort + 2) for number in itertools.count())
    outcome, times = killed(tmp_path, name, grids)
    assert times == options(name)["num-server-rounds"]
    assert_same_run(outcome, whole(name))


@pytest.mark.slow
def test_pruned_and_automatic_ranks_are_kept(whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """By name, over restarts of server and nodes; nobody tries ranks again."""
    assert [[node["rank"] for node in entry["nodes"]] for entry in whole("hetlora").rounds[2:]] == [[8] * 3, [4] * 3]
    folder = stopped(tmp_path, "auto")
    outcome = resumed(folder)
    assert len(whole("auto").grid.of("query.trial")) == 3
    assert not outcome.grid.of("query.trial")


@pytest.mark.slow
def test_what_a_node_keeps_is_found_by_its_name_and_run(whole: Callable[[str], Outcome], tmp_path: Path) -> None:
    """Another run of the same configuration starts without it; a node of another name does too."""
    again = federate(tmp_path / "again", options("fedsa-lora"))
    assert_same_run(again, whole("fedsa-lora"))
    folder = stopped(tmp_path, "fedsa-lora")
    outcome = resumed(folder, None, InProcessGrid(client_app.app, 3, {1: {"name": "stranger"}}))
    assert not equal(outcome.state().tensors, again.state().tensors)


# ------------------------------------------------------------------------------- between two writes


def second_is_best(history: History, line: dict[str, Any]) -> None:
    """Which round has the best state hangs on how a processor rounds; by this it is always round 2."""
    history.best = line if line["round"] <= 2 else history.best


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "_compare", second_is_best)
        return federate(tmp_path_factory.mktemp("never"), options("hetlora"))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["line", "half a line", "checkpoint", "best"])
def test_killed_between_two_writes(
    place: str, never_killed: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the line of round 2 and before its checkpoint; after that and before the best state."""
    save = checkpoint.save
    assert never_killed.summary["best-round"] == 2
    monkeypatch.setattr(History, "_compare", second_is_best)

    def dying(path: Path, state: Any, about: dict[str, Any]) -> None:
        newest = path.name == checkpoint.LAST
        dies_at = {"best": checkpoint.BEST, "checkpoint": ""}.get(place, checkpoint.LAST)
        if about.get("round") == 2 and path.name == dies_at:
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
            federate(tmp_path, options("hetlora"))
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
        federate(tmp_path, options("fedavg"))
    assert kept == [(checkpoint.LAST, 0), ("best.safetensors", 0)]

"""What a node keeps: entries once per store, private tensors for itself alone."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from entries import Listening, at_the_base, fresh_at, same, state_of, values
from flwr.app import ConfigRecord, Message, RecordDict
from in_process import QV, Exchange, InProcessGrid, Outcome, equal, federate, local, retrained, sent, suiting, watched

import client_app
import strategies
from client_app import store
from client_app.local import Local
from client_app.public_errors import NodeError
from client_app.store import DAY, KEPT_FOR, MODEL, SWEPT, ClientStore
from server_app.config import RunConfig
from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors
from strategies.exchange import types
from strategies.exchange.types import State
from strategies.flora import Flora
from strategies.protocol import checkpoint, journal, wire
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import ConfigError


def node(store: Path) -> Local:
    """A node that has nothing yet but a place."""
    return Local((("store-path", str(store)),), 1, ConfigRecord(), TaskConfig())


def kept(store: Path) -> list[Path]:
    return sorted(store.glob("journals/*"))


# ---------------------------------------------------------------------- the journal


def test_entries_come_in_parts_and_are_replayed_from_the_base(tmp_path: Path, strategy: Flora, model: TunedModel):
    whole = state_of(1, 2, 3)
    memory = ClientStore(node(tmp_path), 1)
    for place in range(1, 4):
        start = State(whole.tensors, whole.journal[:place]).after(whole.positions[place - 1])
        assert len(start.journal) == 1
        memory.installed(strategy, model, start)
    assert {path.name for path in kept(tmp_path)} == set(whole.positions[1:])
    another = at_the_base()  # another process: it has the store alone
    again = ClientStore(node(tmp_path), 1).installed(strategy, another, whole.after(whole.positions[3]))
    assert same(values(again), fresh_at(strategy, whole))


def test_an_entry_is_stored_once_for_all_nodes_of_a_store(tmp_path: Path, strategy: Flora, model: TunedModel):
    state = state_of(1, 2)
    ClientStore(node(tmp_path), 1).installed(strategy, model, state)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(before) == 2
    ClientStore(node(tmp_path), 1).installed(strategy, model, state)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_two_runs_keep_their_own_entries_and_share_equal_ones(tmp_path: Path, strategy: Flora, model: TunedModel):
    for numbers in ((1, 2), (1, 3)):
        model = ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(*numbers))
        assert same(values(model), fresh_at(strategy, state_of(*numbers)))
    assert len(kept(tmp_path)) == 3


def test_a_missing_entry_is_said(tmp_path: Path, strategy: Flora, model: TunedModel):
    state = state_of(1, 2)
    with pytest.raises(NodeError, match=f"store {tmp_path} lacks a part of the journal, up to {state.positions[1]}"):
        ClientStore(node(tmp_path), 1).installed(strategy, model, state.after(state.positions[1]))
    found = ClientStore(node(tmp_path), 1).installed(strategy, model, state)
    assert same(values(found), fresh_at(strategy, state))


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds - 60,) * 2)


def test_old_entries_go_when_one_comes(tmp_path: Path, strategy: Flora, model: TunedModel):
    ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(1))
    (old,) = kept(tmp_path)
    aged(old, KEPT_FOR)
    aged(tmp_path / SWEPT, DAY)
    ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(1))
    assert kept(tmp_path) == [old]  # nothing came
    ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(4))
    assert [path.name for path in kept(tmp_path)] == list(state_of(4).positions[1:])


def test_a_store_is_looked_through_once_a_day(
    tmp_path: Path, strategy: Flora, model: TunedModel, monkeypatch: pytest.MonkeyPatch
):
    """For every new entry, every folder was looked at: seconds a round where many runs share a store."""
    looked: list[Path] = []
    idle = store._idle
    monkeypatch.setattr(store, "_idle", lambda path: looked.append(path) or idle(path))
    ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(1))
    looked.clear()
    for last in range(3, 7):
        ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(*range(1, last)))
    assert set(looked) == {tmp_path / SWEPT}
    aged(tmp_path / SWEPT, DAY)
    ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(7))
    assert {*looked} >= {*kept(tmp_path)} - {tmp_path / "journals" / state_of(7).positions[1]}


def test_weights_are_stood_on_instead_of_entries(tmp_path: Path, strategy: Listening, model: TunedModel):
    """Weights, then entries; another process finds the nearest weights."""
    whole = state_of(1, 2, 3)
    early = State(whole.tensors, whole.journal[:2])
    base_weights = journal.base_weights_of(journal.installed(strategy, model, early))
    weights = State(whole.tensors, (), early.positions[-1], base_weights)
    place = tmp_path / "store"
    found = ClientStore(node(place), 1).installed(strategy, at_the_base(), wire.unpack(wire.pack(weights)))
    assert same(values(found), fresh_at(strategy, early))
    strategy.heard.clear()
    again = ClientStore(node(place), 1).installed(strategy, at_the_base(), whole.after(early.positions[-1]))
    assert same(values(again), fresh_at(strategy, whole))
    assert strategy.heard == [3]
    assert journal.fingerprint(again) == journal.fingerprint(journal.installed(strategy, at_the_base(), whole))
    assert [path.name for path in place.glob("grounds/*")] == [early.positions[-1]]
    assert [path.name for path in kept(place)] == [whole.positions[-1]]


def test_old_weights_go_when_something_comes(tmp_path: Path, strategy: Flora, model: TunedModel):
    state = state_of(1)
    base_weights = journal.base_weights_of(journal.installed(strategy, model, state))
    ClientStore(node(tmp_path), 1).installed(
        strategy, model, State(state.tensors, (), state.positions[-1], base_weights)
    )
    (old,) = tmp_path.glob("grounds/*")
    aged(old, KEPT_FOR)
    aged(tmp_path / SWEPT, DAY)
    ClientStore(node(tmp_path), 1).installed(strategy, model, state_of(4))
    assert not list(tmp_path.glob("grounds/*"))
    with pytest.raises(NodeError, match="lacks a part of the journal"):
        ClientStore(node(tmp_path), 1).installed(strategy, at_the_base(), state_of(1, 2).after(state.positions[-1]))
    ClientStore(node(tmp_path), 1).installed(
        strategy, model, state_of(1, 2).after(state.positions[-1])
    )  # it stands there


def test_a_start_without_a_journal_leaves_the_store_alone(tmp_path: Path, strategy: Flora, model: TunedModel):
    ClientStore(node(tmp_path), 1).installed(strategy, model, state_of())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ferret", "flora"])
def test_a_round_costs_the_same_however_many_were_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are opened, names that are looked up on the disk, and hashes of entries, on server and nodes."""
    counts, rounds = Counter[str](), list[Counter[str]]()

    def counted(what: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return function(*args, **kwargs)

        return call

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if (partition, kind) == (0, "train"):
            rounds.append(Counter(counts))
            counts.clear()
        return answer

    monkeypatch.setattr(checkpoint, "safe_open", counted("opened", checkpoint.safe_open))
    monkeypatch.setattr(types.hashlib, "blake2b", counted("hashed", types.hashlib.blake2b))
    monkeypatch.setattr(Path, "exists", counted("looked up", Path.exists))
    options = {"strategy": name, "num-server-rounds": 12, "evaluate-every": 12, **suiting(name)}
    federate(tmp_path, options, spoil=spoil)
    assert rounds[11] == rounds[3]


# ---------------------------------------------------------------------- what is a node's own, by round


def own_of(store: Path, round: int, name: str = "a", token: str = "t", *, after: bool = False) -> ClientStore:
    order = ConfigRecord({"run-token": token})
    return ClientStore(Local((("name", name), ("store-path", str(store))), 1, order, TaskConfig()), round, after=after)


def test_a_repeated_round_starts_from_the_client_state_before_it(tmp_path: Path) -> None:
    for round in (1, 2, 5):
        own_of(tmp_path, round).keep({"private": {"x/y": torch.tensor([round])}, "wrapper-q": {"e": torch.ones(round)}})
    assert own_of(tmp_path, 5).client_state()["private"]["x/y"].item() == 2
    assert own_of(tmp_path, 5).client_state()["wrapper-q"]["e"].shape == (2,)
    assert own_of(tmp_path, 5, after=True).client_state()["private"]["x/y"].item() == 5
    assert own_of(tmp_path, 9).client_state()["private"]["x/y"].item() == 5
    own_of(tmp_path, 5).keep({"private": {"x/y": torch.tensor([50])}})
    assert own_of(tmp_path, 6).client_state() == {"private": {"x/y": torch.tensor([50])}}
    assert own_of(tmp_path, 5).client_state()["private"]["x/y"].item() == 2


def test_two_rounds_are_stored(tmp_path: Path) -> None:
    for round in (1, 2, 3, 3):
        own_of(tmp_path, round).keep({"private": {"x": torch.tensor([round])}})
    (folder,) = tmp_path.glob("own/*")
    assert sorted(path.stem for path in folder.iterdir()) == ["2", "3"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_a_nodes_own_is_its_own_in_that_run(tmp_path: Path) -> None:
    own_of(tmp_path, 1).keep({"private": {"x": torch.ones(1)}})
    assert own_of(tmp_path, 2).client_state()
    assert not own_of(tmp_path, 2, name="b").client_state()
    assert not own_of(tmp_path, 2, token="u").client_state()


def test_who_keeps_nothing_leaves_no_trace(tmp_path: Path) -> None:
    own_of(tmp_path, 1).keep({"private": {}, "wrapper-q": {}})
    assert not list(tmp_path.iterdir())
    own_of(tmp_path, 1).keep({"private": {"x": torch.ones(1)}})
    own_of(tmp_path, 2).keep({"private": {}})
    assert own_of(tmp_path, 3).client_state() == {}
    assert own_of(tmp_path, 2).client_state()


# ---------------------------------------------------------------------- private tensors, in real federations


def shared(name: str, head: str) -> bool:
    return rank_axis(name) == 0 or (rank_axis(name) is None and head == "shared")


@pytest.fixture(scope="module", params=["private", "shared"])
def fedsa(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    options = {"strategy": "fedsa-lora", "evaluate": "nodes", "num-server-rounds": 2, "fedsa-lora.head": request.param}
    return federate(tmp_path_factory.mktemp("fedsa"), QV | options)


def own(outcome: Outcome, partition: int) -> Tensors:
    """What a node kept after its last round."""
    last = [exchange for exchange in outcome.grid.of("train") if exchange.partition == partition][-1]
    return ClientStore(local(outcome.grid, last), 2, after=True).client_state()[MODEL]


@pytest.mark.slow
def test_nothing_but_what_is_shared_crosses_the_wire(fedsa: Outcome) -> None:
    head = str(fedsa.run.flat["fedsa-lora.head"])
    assert len(fedsa.grid.of("train")) == 6
    assert len(fedsa.grid.of("evaluate")) == 9
    for exchange in [*fedsa.grid.of("train"), *fedsa.grid.of("evaluate")]:
        names = sent(exchange.request).keys()
        assert len(names) == 8 + 2 * (head == "shared")
        assert all(shared(name, head) for name in names)
    for exchange in fedsa.grid.of("train"):
        assert sent(exchange.reply).keys() == sent(exchange.request).keys()


def test_every_node_keeps_what_is_its_own(fedsa: Outcome) -> None:
    head = str(fedsa.run.flat["fedsa-lora.head"])
    tensors = [own(fedsa, partition) for partition in range(3)]
    for one in tensors:
        assert len(one) == 8 + 2 * (head == "private")
        assert not any(shared(name, head) for name in one)
        assert all(bool(tensor.any()) for tensor in one.values())
    assert all(not torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_private_tensors_come_back_to_the_same_node(fedsa: Outcome) -> None:
    """The second round's update, made again from what the first one left on this node, is the one that was sent, as
    often as it is asked for; with another node's, or none, it is not."""
    second = [e for e in fedsa.grid.of("train") if e.partition == 1][1]
    others = ClientStore(
        local(fedsa.grid, next(e for e in fedsa.grid.of("train") if e.partition == 2)), 2
    ).client_state()
    here = local(fedsa.grid, second)
    own = ClientStore(here, 2).client_state()
    assert second.reply is not None

    def again() -> Tensors:
        from client_app.training import trained

        return sent(trained(here, RecordDict(dict(second.request))))

    assert equal(again(), sent(second.reply))
    assert equal(again(), sent(second.reply))
    for past in (others, {}, own):
        ClientStore(here, 1).keep(past)
        assert equal(again(), sent(second.reply)) == (past is own)


def test_what_the_server_writes_is_the_shared_part(fedsa: Outcome) -> None:
    from strategies.protocol.journal import held

    model = held(fedsa.run.strategy, fedsa.base, fedsa.task, fedsa.state())
    assert all(not tensor.any() for name, tensor in model.trained.items() if rank_axis(name) == 1)
    assert all(torch.equal(model.trained[name].detach(), t) for name, t in fedsa.state().tensors.items())


@pytest.mark.parametrize("evaluate", ["server", "both"])
def test_only_nodes_can_score_models_of_their_own(evaluate: str) -> None:
    with pytest.raises(ConfigError, match="leaves a model of its own on every node: set evaluate = 'nodes'"):
        RunConfig.read({"strategy": "fedsa-lora", "evaluate": evaluate})


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["fedsa-lora", "ffa-lora"])
def test_a_late_node_of_a_smaller_budget_lowers_the_rank_for_all_and_leaves_again(name: str) -> None:
    """Factors that stay on the nodes have as many ranks as those that come, round by round."""
    grid = InProcessGrid(client_app.app, 3, {2: {"rank": 3}})
    grid.away = {2}

    def coming_and_going(number: int) -> None:
        grid.away = {2} if number != 1 else set()

    options = QV | {"evaluate": "nodes", "lora.ranks": "4"}
    seen = watched(strategies.load(name), options, 3, grid, coming_and_going)
    ranks = [[line.rank for line in report.nodes] for report, _ in seen[1:]]
    assert ranks == [[4, 4], [3, 3, 3], [4, 4]]
    assert not any(line.refused for report, _ in seen for line in report.nodes)
    assert all(report.evaluated_by_nodes for report, _ in seen)


@pytest.mark.slow
def test_instructions_of_another_strategy_do_not_reveal_private_tensors(tmp_path: Path) -> None:
    """A server may give one run's token to an order by which all that trains is sent."""
    outcome = federate(tmp_path, {"strategy": "fedsa-lora", "evaluate": "nodes", "num-server-rounds": 2, **QV})
    [*_, last] = (exchange for exchange in outcome.grid.of("train") if exchange.partition == 0)
    answers = []
    for token in (last.request.config_records["instructions"]["run-token"], "fresh"):
        request = RecordDict({**last.request})
        told = {
            **request.config_records["instructions"],
            "strategy": "fedavg",
            "run-token": token,
            "evaluate": "server",
        }
        request["instructions"] = ConfigRecord(told)
        answers.append(retrained(outcome, Exchange(0, "train", request, None)))
    assert equal(*answers)

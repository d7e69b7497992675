"""SA-FedLoRA as a real federation: initiating rounds, the hand-over, the shrink, and what the ledger says of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from exports import exported
from flwr.app import Message
from in_process import QV, Exchange, InProcessGrid, Outcome, federate, local, sent, spoiled, watched

import client_app
import strategies
from client_app.store import ClientStore
from strategies.algebra.lowrank import factor_names, modules, rank_axis
from strategies.algebra.tensors import Tensors, snapshot
from strategies.exchange.callback import RoundReport
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import State
from strategies.protocol import wire
from strategies.protocol.instructions import RANK
from strategies.protocol.journal import held
from task.config import Model, TaskConfig
from task.models.base import Base
from task.models.finding import server_base
from task.models.model import TunedModel, build, kept_model, tuned_model
from task.storage.store import server_store
from task.tunings import registry

OPTIONS = QV | {"lora.ranks": "2,4,8", "learning-rate": 0.01}
SCHEDULE: dict[str, Any] = {"schedule": "linear", "heating": 0.0, "cooling": 0.2, "final_rank": 2}
ANNEALING = strategies.load("sa-fedlora", remainder="drop", **SCHEDULE)
MERGING = strategies.load("sa-fedlora", remainder="merge", **SCHEDULE)
TASK = TaskConfig.read({"data.labels": "0|1|2|3|4|5|6|7|8|9", "lora.targets": QV["lora.targets"]})
Watched = tuple[InProcessGrid, list[tuple[RoundReport, State]]]


@pytest.fixture(scope="module")
def base() -> Base:
    return server_base(Model(), server_store())


def run(rounds: int = 4, strategy: Strategy = ANNEALING, **grid: Any) -> Watched:
    made = InProcessGrid(client_app.app, 3, **grid)
    return made, watched(strategy, OPTIONS, rounds, made)


@pytest.fixture(scope="module")
def annealed() -> Watched:
    """Round 1 initiates; ranks of at most 8, 5 and 2 follow. What a shrink cuts off is lost."""
    return run()


@pytest.fixture(scope="module")
def merging() -> Watched:
    """The same with what is cut off in the base."""
    return run(strategy=MERGING)


def trainings(watched: Watched, number: int) -> list[Exchange]:
    """What was exchanged in the training of one round."""
    assignments = [(e, e.request.config_records["assignment"]["server-round"]) for e in watched[0].of("train")]
    return [exchange for exchange, round in assignments if round == number]


def logits(model: TunedModel) -> torch.Tensor:
    """Of 16 fixed random pictures."""
    pixels = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model.module.eval()(pixel_values=pixels).logits
    return found


def served(state: State, base: Base) -> torch.Tensor:
    return logits(held(ANNEALING, base, TASK, state))


def count(tensors: Tensors) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


# ---------------------------------------------------------------------- stages


@pytest.mark.slow
def test_an_initiating_round_moves_what_full_tuning_moves(annealed: Watched, base: Base) -> None:
    full = build(base, replace(TASK, tuning=registry.load("full")()), 0, "cpu").trained
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in full.items()}
    for exchange in trainings(annealed, 1):
        down, up = sent(exchange.request), sent(exchange.reply)
        for tensors in (down, up):
            assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == shapes
        assert all(torch.equal(tensor, full[name]) for name, tensor in down.items())
        assert all(bool(tensor.any()) for tensor in up.values())


def test_its_state_is_the_mean_of_all_weights(annealed: Watched) -> None:
    exchanges = trainings(annealed, 1)
    rows = [float(e.reply["metrics"]["num-examples"]) for e in exchanges if e.reply is not None]  # type: ignore
    for name, start in sent(exchanges[0].request).items():
        changes = [row / sum(rows) * sent(e.reply)[name].double() for e, row in zip(exchanges, rows, strict=True)]
        expected = start.double() + torch.stack(changes).sum(dim=0)
        torch.testing.assert_close(annealed[1][1][1].tensors[name].double(), expected, rtol=0.0, atol=1e-6)


def test_ranks_fall_under_every_budget(annealed: Watched) -> None:
    ranks = [[line.rank for line in report.nodes] for report, _ in annealed[1][1:]]
    assert ranks == [[0, 0, 0], [2, 4, 8], [2, 4, 5], [2, 2, 2]]
    assert [state.rank for _, state in annealed[1]] == [8, 8, 8, 5, 2]
    for number, line in enumerate(ranks[1:], 2):
        pairs = [
            (wire.unpack(e.request).rank, wire.unpack(e.reply).rank) for e in trainings(annealed, number) if e.reply
        ]
        assert pairs == [(rank, rank) for rank in line]


def test_a_node_leaves_the_ranks_beyond_its_own_as_they_are(annealed: Watched, base: Base) -> None:
    """Round 2: only node 2 has ranks 5 to 8, so their change is its change times its share of all rows."""
    exchanges = trainings(annealed, 2)
    rows = [float(e.reply["metrics"]["num-examples"]) for e in exchanges if e.reply is not None]  # type: ignore
    before, after = sent(exchanges[2].request), annealed[1][2][1].tensors
    for name, change in sent(exchanges[2].reply).items():
        if (axis := rank_axis(name)) is not None:
            alone = before[name].double() + rows[2] / sum(rows) * change.double()
            beyond = (after[name].double() - alone).narrow(axis, 4, 4)
            assert float(beyond.abs().max()) < 1e-6


def test_the_base_is_an_entry_that_everybody_is_sent_once(annealed: Watched) -> None:
    whole = annealed[1][1][1].tensors
    for exchange in trainings(annealed, 2):
        share = wire.unpack(exchange.request)
        (entry,) = share.journal
        assert entry.tensors.keys() == {n for n in sent(trainings(annealed, 1)[0].request) if "classifier" not in n}
        assert all(torch.equal(tensor, whole[name]) for name, tensor in entry.tensors.items())
    mark = annealed[1][2][1].positions[1]
    for exchange in trainings(annealed, 3) + trainings(annealed, 4):
        share = wire.unpack(exchange.request)
        assert (share.journal, share.since) == ((), mark)


# ---------------------------------------------------------------------- the function stays


def test_the_hand_over_leaves_the_function_as_it_is(annealed: Watched, base: Base) -> None:
    whole = annealed[1][1][1]
    begun = ANNEALING.begin(whole, 2, 8)
    before, after = served(whole, base), served(begun, base)
    assert torch.equal(before, after)
    assert float((before - logits(build(base, TASK, 8, "cpu"))).abs().max()) > 1e-2  # it learned something


@pytest.mark.parametrize("strategy", [ANNEALING, MERGING], ids=["drop", "merge"])
def test_a_shrink_that_loses_nothing_leaves_the_function_as_it_is(
    annealed: Watched, base: Base, strategy: Strategy
) -> None:
    """Products of rank 2 in factors of rank 8. The adapters are built anew at the smaller rank, the scaling is kept."""
    state, numbers = annealed[1][2][1], torch.Generator().manual_seed(3)
    low: Tensors = {}
    for module in modules(state.tensors):
        b_name, a_name = factor_names(module)
        b, a = state.tensors[b_name], state.tensors[a_name]
        mix = torch.randn(2, 8, generator=numbers)
        low |= {b_name: torch.randn(b.shape[0], 2, generator=numbers) @ mix / 8, a_name: a}
    wide = State(state.tensors | low, state.journal)
    narrow = strategy.begin(wide, 3, 2)
    assert (wide.rank, narrow.rank) == (8, 2)
    assert len(narrow.journal) == len(wide.journal)
    before, after = served(wide, base), served(narrow, base)
    torch.testing.assert_close(after, before, rtol=0.0, atol=1e-4)
    idle = {name: torch.zeros_like(tensor) if rank_axis(name) == 1 else tensor for name, tensor in low.items()}
    assert float((before - served(State(state.tensors | idle, state.journal), base)).abs().max()) > 1e-2


@pytest.mark.slow
def test_a_shrink_with_its_remainder_in_the_base_leaves_the_function_as_it_is(merging: Watched, base: Base) -> None:
    """Every round begins with the function that the one before ended with; where the remainder is lost it does not."""
    for number, rank in ((3, 5), (4, 2)):
        ended = merging[1][number - 1][1]
        merged, dropped = MERGING.begin(ended, number, rank), ANNEALING.begin(ended, number, rank)
        assert merged.rank == dropped.rank == rank
        before = served(ended, base)
        torch.testing.assert_close(served(merged, base), before, rtol=0.0, atol=1e-5)
        assert float((served(dropped, base) - before).abs().max()) > 1e-3


def test_a_remainder_is_as_large_as_the_ranks_that_went_and_is_sent_once(merging: Watched) -> None:
    journal = merging[1][4][1].journal
    assert [entry.round for entry in journal] == [1, 3, 4]
    assert [count(entry.tensors) for entry in journal[1:]] == [8 * 3 * (64 + 64)] * 2
    for number, entry in enumerate(journal, 2):
        shares = [wire.unpack(exchange.request) for exchange in trainings(merging, number)]
        assert [[sent.digest for sent in share.journal] for share in shares] == [[entry.digest]] * 3


def test_nodes_replay_hand_over_and_remainders_to_what_the_server_has(merging: Watched, base: Base) -> None:
    """The last start of the node that trains the whole state, message by message, against the server's at once."""
    for exchange in trainings(merging, 2) + trainings(merging, 3) + trainings(merging, 4):
        if exchange.partition == 2:
            node = local(merging[0], exchange)
            model = tuned_model(node.base, node.config, int(node.instructions[RANK]), "cpu")  # type: ignore[arg-type]
            model = ClientStore(node, 1).installed(MERGING, model, wire.unpack(exchange.request))
    begun = MERGING.begin(merging[1][3][1], 4, 2)
    own = snapshot({**model.frozen, **model.trained})
    kept_model.cache_clear()
    whole = held(MERGING, base, TASK, begun)
    for name, tensor in {**whole.frozen, **whole.trained}.items():
        assert torch.equal(own[name], tensor), name


@pytest.mark.slow
def test_a_run_of_two_stages_is_exported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The best round may be one of the whole model, the last is an adapter on a base of its own."""
    options = OPTIONS | {"strategy": "sa-fedlora", "num-server-rounds": 3, "learning-rate": 0.001}
    outcome: Outcome = federate(tmp_path_factory.mktemp("run"), options)
    pixels = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for which in ("last", "best"):
        model = held(outcome.run.strategy, outcome.base, outcome.task, outcome.state(which))
        with torch.no_grad():
            assert torch.equal(exported(outcome, which)(pixel_values=pixels).logits, logits(model))
        assert (outcome.folder / "model" / which / "base" / "config.json").exists() == bool(
            model.position or model.changed
        )
    assert outcome.state().rank == 2
    assert [line["aggregation-error"] == {} for line in outcome.rounds] == [True, True, False, False]


# ---------------------------------------------------------------------- the ledger

WHOLE = 136_138  # numbers in the embedded base
HEAD = 64 * 10 + 10


def adapters(ranks: Sequence[int]) -> int:
    """Numbers in heads and factors of 8 layers of 64 x 64."""
    return sum(HEAD + 8 * rank * (64 + 64) for rank in ranks)


def parameters(watched: Watched) -> list[tuple[int, int]]:
    """(down, up) of every round after 0."""
    return [(report.parameters_down, report.parameters_up) for report, _ in watched[1][1:]]


def test_the_ledger_counts_the_base_once_a_node(annealed: Watched) -> None:
    two, three, four = adapters([2, 4, 8]), adapters([2, 4, 5]), adapters([2, 2, 2])
    handed = 3 * (WHOLE - HEAD)
    assert parameters(annealed) == [(3 * WHOLE, 3 * WHOLE), (two + handed, two), (three, three), (four, four)]
    for number, (down, up) in enumerate(parameters(annealed), 1):
        exchanges = trainings(annealed, number)
        assert down == sum(wire.unpack(exchange.request).numbers for exchange in exchanges)
        assert up == sum(count(sent(exchange.reply)) for exchange in exchanges)


def spoiling(partitions: set[int], number: int) -> Any:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        now = kind == "train" and reply.content["metrics"]["server-round"] == number
        return spoiled(reply) if now and partition in partitions else reply

    return spoil


def test_a_node_that_fails_at_the_hand_over_is_sent_the_base_again() -> None:
    failing = run(spoil=spoiling({1}, 2))
    two, three, four = adapters([2, 4, 8]), adapters([2, 4, 5]), adapters([2, 2, 2])
    handed = WHOLE - HEAD
    downs = [down for down, _ in parameters(failing)]
    assert downs == [3 * WHOLE, two + 3 * handed, three + handed, four]
    assert [len(wire.unpack(e.request).journal) for e in trainings(failing, 3)] == [0, 1, 0]
    assert parameters(failing)[1][1] == two - adapters([4])  # what did not count did not come
    assert not any(line.refused for line in failing[1][3][0].nodes)


def test_a_node_that_joins_after_the_hand_over_is_sent_the_base_once() -> None:
    grid = InProcessGrid(client_app.app, 3)
    grid.away = {1}
    joined = grid, watched(ANNEALING, OPTIONS, 4, grid, lambda number: grid.away.clear() if number == 2 else None)
    downs = [down for down, _ in parameters(joined)]
    handed = WHOLE - HEAD
    assert downs == [
        2 * WHOLE, adapters([2, 8]) + 2 * handed, adapters([2, 4, 5]) + handed, adapters([2, 2, 2]),
    ]  # fmt: skip
    assert [len(wire.unpack(exchange.request).journal) for exchange in trainings(joined, 3)] == [0, 1, 0]
    assert not any(line.refused for report, _ in joined[1] for line in report.nodes)


# ---------------------------------------------------------------------- rounds that fail


def test_a_failed_initiating_round_leaves_the_weights() -> None:
    failing = run(rounds=2, spoil=spoiling({0, 1, 2}, 1))
    (_, start), (report, after), (_, adapted) = failing[1]
    assert report.failed
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in start.tensors.items())
    (entry,) = adapted.journal
    assert all(torch.equal(tensor, start.tensors[name]) for name, tensor in entry.tensors.items())


def test_a_failed_hand_over_is_not_made_twice() -> None:
    failing = run(rounds=3, spoil=spoiling({0, 1, 2}, 2))
    assert [bool(report.failed) for report, _ in failing[1]] == [False, False, True, False]
    states = [state for _, state in failing[1]]
    assert [len(state.journal) for state in states] == [0, 0, 1, 1]
    assert states[3].positions == states[2].positions

"""FLoRA and FedEx-LoRA as real federations: effective weights from the messages, who is sent which entry, replay."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from in_process import QV, Outcome, federate, local, sent, spoiled

from client_app.store import ClientStore
from strategies.algebra.lowrank import factor_names, modules
from strategies.algebra.tensors import Tensors, added, raw, snapshot
from strategies.exchange.types import BASE_POSITION, State
from strategies.protocol import journal, wire
from strategies.protocol.instructions import RANK
from strategies.protocol.journal import held
from task.models.model import build, kept_model, tuned_model

ROUNDS = 3
OPTIONS = QV | {"lora.ranks": "2,4", "num-server-rounds": ROUNDS, "learning-rate": 0.05, "evaluate": "both"}
NAMES = ["flora", "fedex-lora"]


@pytest.fixture(scope="module", params=[NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("stacked"), OPTIONS | {"strategy": request.param})


# ---------------------------------------------------------------------- what a run comes to


def products(tensors: Tensors) -> dict[str, torch.Tensor]:
    """B A of every module in float64; none where there are no factors."""
    found = {}
    for module in modules(tensors):
        b, a = (tensors[name].double() for name in factor_names(module))
        found[module] = b @ a
    return found


def from_messages(outcome: Outcome) -> dict[str, torch.Tensor]:
    """What is added to every module's weight: sum over rounds of the weighted mean of the nodes' products less the
    product that they were sent, which is in the weights already."""
    total: dict[str, torch.Tensor] = {}
    trainings = outcome.grid.of("train")
    for number in range(ROUNDS):
        pairs = [(sent(e.request), e.reply) for e in trainings[3 * number : 3 * number + 3]]
        rows = [float(reply["metrics"]["num-examples"]) for _, reply in pairs if reply is not None]  # type: ignore
        for (start, reply), row in zip(pairs, rows, strict=True):
            update = sent(reply)
            trained = update | added(start, update)
            known = products(start)
            for module, product in products(trained).items():
                change = row / sum(rows) * (product - known.get(module, torch.zeros(())))
                total[module] = total.get(module, torch.zeros(())) + change
    return total


def test_effective_weights_are_the_base_and_the_means_of_all_rounds(outcome: Outcome) -> None:
    base = build(outcome.base, outcome.task, 8, "cpu").frozen
    model = held(outcome.run.strategy, outcome.base, outcome.task, outcome.state())
    scaling, learned = outcome.task.tuning.product_scale(), from_messages(outcome)
    assert len(learned) == 8
    adapters = products(snapshot(model.trained))
    for module, change in learned.items():
        effective = model.frozen[f"{module}.weight"].detach().double() + scaling * adapters[module]
        expected = base[f"{module}.weight"].detach().double() + scaling * change
        torch.testing.assert_close(effective, expected, rtol=0.0, atol=2e-6)
        assert float((scaling * change).abs().max()) > 1e-3


@pytest.mark.slow
def test_other_frozen_weights_stay(outcome: Outcome) -> None:
    base = build(outcome.base, outcome.task, 8, "cpu").frozen
    model = held(outcome.run.strategy, outcome.base, outcome.task, outcome.state())
    moved = {name for name, tensor in model.frozen.items() if not torch.equal(tensor, base[name])}
    assert moved == {f"{module}.weight" for module in modules(outcome.state().tensors)}


@pytest.mark.judged
def test_the_aggregation_error_is_zero_in_every_round(outcome: Outcome) -> None:
    assert outcome.rounds[0]["aggregation-error"] == {}
    for line in outcome.rounds[1:]:
        assert line["aggregation-error"].keys() == {"overall", *modules(outcome.state().tensors)}
        assert max(line["aggregation-error"].values()) < 1e-5


def test_ranks_are_mixed_where_they_may_be(outcome: Outcome) -> None:
    ranks = [line["rank"] for line in outcome.rounds[1]["nodes"]]
    assert ranks == ([2, 4, 2] if outcome.run.strategy.heterogeneous_ranks else [2, 2, 2])


def test_every_round_leaves_one_entry(outcome: Outcome) -> None:
    assert [entry.round for entry in outcome.state().journal] == [1, 2, 3]


# ---------------------------------------------------------------------- who is sent what


def entries_by_message(outcome: Outcome, partition: int) -> Iterator[tuple[str, str, list[str]]]:
    """(kind, since, digests of the entries) of every message with a state that a node was sent, in order."""
    for exchange in outcome.grid.exchanges:
        if exchange.partition == partition and exchange.kind in ("train", "evaluate"):
            share = wire.unpack(exchange.request)
            yield exchange.kind, share.since, [entry.digest for entry in share.journal]


def test_a_node_is_sent_each_entry_once(outcome: Outcome) -> None:
    """With the first message after the round that made it, here that of the evaluation."""
    digests = [entry.digest for entry in outcome.state().journal]
    positions = outcome.state().positions
    expected: list[tuple[str, str, list[str]]] = [("evaluate", BASE_POSITION, [])]
    for number, digest in enumerate(digests):
        expected += [("train", positions[number], []), ("evaluate", positions[number], [digest])]
    for partition in range(3):
        assert list(entries_by_message(outcome, partition)) == expected


def test_bytes_down_do_not_grow_with_the_journal(outcome: Outcome) -> None:
    downs = [line["bytes_down"] for line in outcome.rounds[1:]]
    assert max(downs) < 1.2 * min(downs)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """FLoRA; in round 3 node 1 answers with NaN, after it node 2 loses its store and no process keeps a model."""
    folder = tmp_path_factory.mktemp("troubled")
    stores = {partition: folder / f"store-{partition}" for partition in range(3)}
    trained: dict[int, int] = dict.fromkeys(stores, 0)

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        trained[partition] += kind == "train"
        if (partition, kind, trained[partition]) == (2, "train", 3):
            shutil.rmtree(stores[2] / "journals")
        if trained[2] >= 3:
            kept_model.cache_clear()  # or the node would go on from the model that it shares with this process
        return spoiled(reply) if (partition, kind, trained[partition]) == (1, "train", 3) else reply

    own = {partition: {"store-path": str(path)} for partition, path in stores.items()}
    options = QV | {"strategy": "flora", "num-server-rounds": 5, "lora.ranks": "2"}
    return federate(folder, options, spoil=spoil, node_configs=own)


def numbers_sent(outcome: Outcome, partition: int) -> list[list[int]]:
    """The rounds of the entries that a node was sent, by training."""
    shares = [wire.unpack(e.request) for e in outcome.grid.of("train") if e.partition == partition]
    return [[entry.round for entry in share.journal] for share in shares]


@pytest.mark.slow
def test_a_node_that_failed_is_sent_everything_again(troubled: Outcome) -> None:
    assert numbers_sent(troubled, 0) == [[], [1], [2], [3], [4]]
    assert numbers_sent(troubled, 1) == [[], [1], [2], [1, 2, 3], [4]]


@pytest.mark.slow
def test_a_node_that_lost_its_store_fails_once_and_recovers(troubled: Outcome) -> None:
    assert numbers_sent(troubled, 2) == [[], [1], [2], [3], [1, 2, 3, 4]]
    refused = [[line["refused"] for line in entry["nodes"]] for entry in troubled.rounds[1:]]
    assert [[bool(reason) for reason in line] for line in refused] == [
        [False] * 3, [False] * 3, [False, True, False], [False, False, True], [False] * 3,
    ]  # fmt: skip
    assert "lacks a part of the journal" in refused[3][2]


@pytest.mark.slow
def test_a_node_that_did_not_evaluate_is_sent_everything_again(tmp_path: Path) -> None:
    scored: list[int] = []

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        scored.extend([partition] if kind == "evaluate" else [])
        if kind == "evaluate" and partition == 1 and scored.count(1) == 3:  # after rounds 0, 1 and now 2
            raise OSError("no disk")
        return reply

    outcome = federate(tmp_path, OPTIONS | {"strategy": "flora"}, spoil=spoil)
    assert numbers_sent(outcome, 0) == [[], [], []]  # its entries came with the evaluations
    assert numbers_sent(outcome, 1) == [[], [], [1, 2]]


@pytest.mark.slow
def test_a_node_that_caught_up_trains_on_what_the_others_have(troubled: Outcome) -> None:
    """All three stand on the same weights in the end."""
    grounds = [replayed(troubled, partition) for partition in range(3)]
    assert all(same_bits(grounds[0], base_weights) for base_weights in grounds[1:])


# ---------------------------------------------------------------------- replay


def replayed(outcome: Outcome, partition: int) -> Tensors:
    """All tensors of a node's model before its last training, after replaying message by message what it was sent."""
    kept_model.cache_clear()
    for exchange in outcome.grid.of("train"):
        if exchange.partition == partition and exchange.reply is not None:
            node = local(outcome.grid, exchange)
            model = tuned_model(node.base, node.config, int(node.instructions[RANK]), "cpu")  # type: ignore[arg-type]
            model = ClientStore(node, 1).installed(outcome.run.strategy, model, wire.unpack(exchange.request))
    return snapshot({**model.frozen, **model.trained})


def same_bits(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(raw(tensor) == raw(other[name]) for name, tensor in one.items())


def test_the_servers_replay_is_the_nodes_bit_for_bit(outcome: Outcome) -> None:
    """The server replays the whole journal at once, the node entry by entry as they came."""
    last = [exchange for exchange in outcome.grid.of("train") if exchange.partition == 1][-1]
    node = replayed(outcome, 1)
    kept_model.cache_clear()
    entries = outcome.state().journal[:-1]
    rank = outcome.state().rank
    model = tuned_model(outcome.base, outcome.task, rank, "cpu")
    model = journal.installed(outcome.run.strategy, model, State(sent(last.request), entries))
    assert same_bits(snapshot({**model.frozen, **model.trained}), node)
    fresh = build(outcome.base, outcome.task, rank, "cpu")
    assert not same_bits(snapshot(fresh.frozen), {name: node[name] for name in fresh.frozen})

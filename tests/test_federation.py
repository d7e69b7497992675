"""Whole federations through the real ClientApp and Flower's real messages, for every strategy x tuning that fits."""

import math
import tomllib
from pathlib import Path

import pytest
import torch
from exports import exported
from in_process import SMALL, Outcome, equal, federate, raw_bytes, retrained, sent, suiting

import strategies
from server_app.config import RunConfig
from strategies.exchange.compatibility import fitting_tunings
from strategies.exchange.types import State
from strategies.protocol import wire
from strategies.protocol.instructions import read_assignment
from strategies.protocol.journal import held
from task.data.prepared import prepare
from task.models.model import build
from task.storage.store import server_store

TUNINGS = ("full", "lora", "bias", "head")  # the others: test_tunings.py
FITTING = [
    (name, tuning)
    for name in strategies.names()
    for tuning in TUNINGS
    if tuning in fitting_tunings(strategies.load(name))
]
SUMMARY = {
    "status", "metric", "metric-source", "base", "final", "best", "rounds", "ranks",
    "bytes_up", "bytes_down", "bytes_base", "seconds",
}  # fmt: skip


# ------------------------------------------------------------------------------- every strategy x tuning
@pytest.fixture(scope="module", params=FITTING, ids="-".join)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    strategy, tuning = request.param
    return federate(tmp_path_factory.mktemp("run"), suiting(strategy) | {"strategy": strategy, "tuning": tuning})


def test_all_replies_are_good_and_metrics_finite(outcome: Outcome) -> None:
    assert outcome.summary["status"] == "completed"
    start, trained = outcome.rounds
    assert [start["round"], trained["round"]] == [0, 1]
    assert [line["node"] for line in trained["nodes"]] == ["0", "1", "2"]
    for line in trained["nodes"]:
        assert not line["refused"]
        assert all(math.isfinite(value) for value in line["metrics"].values())
    for entry in (start, trained):
        assert all(math.isfinite(entry[name]) for name in ("accuracy", "loss", "chosen-by"))
    kept = trained.get("nodes-num-examples", 0)
    assert sum(line["metrics"]["num-examples"] for line in trained["nodes"]) + kept == SMALL["data.train-rows"]
    initial = outcome.run.strategy.initial(build(outcome.base, outcome.task, 8, "cpu"))
    assert outcome.state().tensors.keys() == initial.tensors.keys()


def test_only_what_is_trained_crosses_the_wire(outcome: Outcome) -> None:
    strategy, lines = outcome.run.strategy, outcome.rounds[1]["nodes"]
    model = build(outcome.base, outcome.task, 8, "cpu")
    initial = strategy.initial(model)
    for exchange, line in zip(outcome.grid.of("train"), lines, strict=True):
        assignment = read_assignment(exchange.request.config_records["assignment"])
        start = strategy.start_of(initial, assignment)
        expected = strategy.expected(initial, assignment)
        live = strategy.live(model, assignment)
        assert exchange.reply is not None
        down, up = sent(exchange.request), sent(exchange.reply)
        assert down.keys() == start.tensors.keys()
        names = strategy.exchanged(model).keys() | live.keys()
        if initial.tensors.keys() <= names:
            assert down.keys() | up.keys() <= names
            assert up.keys() <= live.keys()
        for name, tensor in expected.items():
            assert (up[name].shape, up[name].dtype) == (tensor.shape, tensor.dtype)
        assert up.keys() == expected.keys()
        assert raw_bytes(up) < line["bytes_up"] == wire.size(exchange.reply) < 1.05 * raw_bytes(up) + 3000
        assert raw_bytes(down) < line["bytes_down"] == wire.size(exchange.request) < 1.05 * raw_bytes(down) + 3000


def test_an_update_depends_on_the_message_alone(outcome: Outcome) -> None:
    """Not on what the same process did for other nodes before."""
    exchange = outcome.grid.of("train")[2]
    assert exchange.reply is not None
    assert equal(sent(exchange.reply), retrained(outcome, exchange))


def test_bytes_add_up(outcome: Outcome) -> None:
    grid, summary = outcome.grid, outcome.summary
    counted = [exchange for exchange in grid.exchanges if exchange.kind != "query.base"]
    offers = [exchange for exchange in grid.exchanges if exchange.kind == "query.base"]
    assert summary["bytes_down"] == sum(wire.size(exchange.request) for exchange in counted)
    assert summary["bytes_up"] == sum(wire.size(exchange.reply) for exchange in counted if exchange.reply is not None)
    assert summary["bytes_base"] == sum(wire.size(exchange.request) for exchange in offers)


def test_the_results_folder_is_complete(outcome: Outcome) -> None:
    folder = outcome.folder
    assert (folder.parent / "latest").resolve() == folder
    assert outcome.summary.keys() >= SUMMARY
    assert outcome.summary["final"] == outcome.rounds[-1]["accuracy"]
    assert outcome.summary["base"] == outcome.rounds[0]["accuracy"]
    assert outcome.summary["best"] == outcome.rounds[outcome.summary["best-round"]]["accuracy"]
    assert '<figure class="chart" id="quality">' in (folder / "report.html").read_text()
    tables = tomllib.loads((folder / "config.toml").read_text())
    flat = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    flat |= {f"{table}.{key}": v for table, part in tables.items() if isinstance(part, dict) for key, v in part.items()}
    again = RunConfig.read(flat)
    assert (again.task, again.server, again.strategy) == (outcome.task, outcome.run.server, outcome.run.strategy)


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_tuned_model_loads_elsewhere(outcome: Outcome, which: str) -> None:
    """In plain transformers and peft, with the base that the folder names; fedsa-lora's is the shared part."""
    model = held(outcome.run.strategy, outcome.base, outcome.task, outcome.state(which)).module
    batch = prepare(outcome.task, outcome.base.folder, server_store()).test.batch(torch.arange(20), "cpu")
    with torch.no_grad():
        assert torch.equal(exported(outcome, which)(**batch).logits, model.eval()(**batch).logits)
    assert outcome.state("last").tensors.keys() == outcome.state("best").tensors.keys()


# ------------------------------------------------------------------------------- ranks
def ranks_sent(outcome: Outcome) -> list[tuple[int, int]]:
    """(rank of the start, rank of the update) of every node."""
    pairs = [(wire.unpack(e.request), wire.unpack(e.reply)) for e in outcome.grid.of("train") if e.reply is not None]
    return [(start.rank, update.rank) for start, update in pairs]


@pytest.mark.first(1)
@pytest.mark.parametrize("name", [n for n in strategies.names() if strategies.strategy_class(n).heterogeneous_ranks])
def test_every_node_trains_its_own_rank(name: str, tmp_path: Path) -> None:
    annealing = {"sa-fedlora.initiating-rounds": 0, "sa-fedlora.final-rank": 8}
    outcome = federate(tmp_path, {"strategy": name, "lora.ranks": "2,4,8"} | annealing)
    downs = [0, 0, 0] if name == "flora" else [2, 4, 8]  # its nodes draw their factors themselves
    assert ranks_sent(outcome) == list(zip(downs, [2, 4, 8], strict=True))
    assert [line["rank"] for line in outcome.rounds[1]["nodes"]] == [2, 4, 8]
    assert outcome.summary["ranks"] == {"0": 2, "1": 4, "2": 8}
    assert outcome.state().rank == 8


def test_where_ranks_must_be_equal_the_smallest_budget_rules(tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"strategy": "fedavg", "lora.ranks": "2,4,8"})
    assert ranks_sent(outcome) == [(2, 2)] * 3
    assert outcome.summary["ranks"] == {"0": 2, "1": 2, "2": 2}
    assert outcome.state().rank == 2


def test_a_node_may_name_its_own_rank(tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"strategy": "rbla"}, node_configs={1: {"rank": 3}})
    assert outcome.summary["ranks"] == {"0": 8, "1": 3, "2": 8}


# ------------------------------------------------------------------------------- who measures, who takes part
def test_nodes_may_measure_quality(tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"evaluate": "nodes"})
    assert [partition for partition, kind in outcome.grid.log if kind == "evaluate"] == [0, 1, 2] * 2
    for number, entry in enumerate(outcome.rounds):
        answers = [e.reply["metrics"] for e in outcome.grid.of("evaluate")[3 * number : 3 * number + 3] if e.reply]
        rows = sum(int(answer["num-examples"]) for answer in answers)
        mean = sum(answer["accuracy"] * answer["num-examples"] for answer in answers) / rows
        assert entry["accuracy"] == entry["nodes-accuracy"] == pytest.approx(mean)
        assert entry["nodes-num-examples"] == rows
        assert "server-test-accuracy" not in entry
    assert outcome.summary["metric-source"].startswith("nodes")
    trained = [line["metrics"]["num-examples"] for line in outcome.rounds[1]["nodes"]]
    assert sum(trained) + rows == SMALL["data.train-rows"]  # nobody trains on what it keeps for evaluation


@pytest.mark.slow
def test_server_and_nodes_may_both_measure(tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"evaluate": "both"})
    for entry in outcome.rounds:
        assert {"server-test-accuracy", "server-validation-accuracy", "nodes-accuracy"} <= entry.keys()
        assert entry["accuracy"] == entry["server-test-accuracy"]
    assert outcome.summary["metric-source"].startswith("server")


@pytest.mark.slow
def test_a_part_of_the_nodes_trains_in_a_round(tmp_path: Path) -> None:
    options = {"fraction-train": 0.5, "num-server-rounds": 4, "simulation.num-supernodes": 4, "tuning": "head"}
    cohorts = []
    for ids in (0, 1):
        rounds = federate(tmp_path, options, ids=ids).rounds[1:]
        cohorts.append([[line["node"] for line in entry["nodes"]] for entry in rounds])
    assert all(len(set(cohort)) == 2 for cohort in cohorts[0])
    assert len({tuple(cohort) for cohort in cohorts[0]}) > 1
    assert cohorts[0] == cohorts[1]  # drawn by name, not by Flower's random ids


def test_a_cohort_is_never_smaller_than_asked(tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"fraction-train": 0.1, "min-train-nodes": 2, "tuning": "head"})
    assert len(outcome.rounds[1]["nodes"]) == 2


# ------------------------------------------------------------------------------- wrappers
@pytest.mark.slow
def test_half_precision_halves_what_goes_up(tmp_path: Path) -> None:
    plain, half = federate(tmp_path), federate(tmp_path, {"wrappers": "half"})
    for whole, narrow in zip(plain.grid.of("train"), half.grid.of("train"), strict=True):
        assert 2 * raw_bytes(sent(narrow.reply)) == raw_bytes(sent(whole.reply))
        assert all(tensor.dtype == torch.bfloat16 for tensor in sent(narrow.reply).values())
    assert half.rounds[1]["bytes_up"] < 0.52 * plain.rounds[1]["bytes_up"]
    assert all(tensor.dtype == torch.float32 for tensor in half.state().tensors.values())
    for name, tensor in plain.state().tensors.items():
        torch.testing.assert_close(half.state().tensors[name], tensor, rtol=0.0, atol=2e-4)


# ------------------------------------------------------------------------------- determinism
@pytest.mark.first(1)
@pytest.mark.parametrize("name", strategies.names())
def test_one_seed_gives_one_result(name: str, tmp_path: Path) -> None:
    """Whatever ids Flower draws, and whatever this process did before."""
    options = {"strategy": name, "lora.ranks": "2,8", "num-server-rounds": 2, "simulation.num-supernodes": 2}
    options |= suiting(name)
    first = federate(tmp_path, options, ids=0)
    federate(tmp_path, {"tuning": "bias", "num-server-rounds": 1})
    second = federate(tmp_path, options, ids=1)
    assert first.grid.get_node_ids() != second.grid.get_node_ids()
    assert equal(first.state().tensors, second.state().tensors)
    assert first.state().positions == second.state().positions
    other = federate(tmp_path, options | {"seed": 1}).state()
    assert not equal(first.state().tensors, other.tensors) or first.state().positions[-1] != other.positions[-1]


@pytest.mark.slow
def test_the_order_of_node_ids_does_not_matter(tmp_path: Path) -> None:
    """Partition 0 has the smallest id in one run and the largest in another."""
    options = {"simulation.num-supernodes": 3, "tuning": "bias"}
    states: dict[tuple[int, ...], State] = {}
    for ids in range(6):
        outcome = federate(tmp_path, options, ids=ids)
        ranking = tuple(outcome.grid.partitions[node_id] for node_id in sorted(outcome.grid.get_node_ids()))
        states[ranking] = outcome.state()
        if len(states) == 2:
            break
    one, other = states.values()
    assert equal(one.tensors, other.tensors)

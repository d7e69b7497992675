"""Federations whose updates are compressed: they learn, and errors stay with their node."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from in_process import QV, InProcessGrid, Outcome, equal, federate, local, raw_bytes, sent, suiting

import client_app
import strategies
from client_app.store import ClientStore
from client_app.training import trained
from strategies.algebra.tensors import Tensors
from task.config import TaskConfig

REFUSED = {("scaffold", "quantize"), ("scaffold", "top-k"), ("fedrot-lora", "top-k")}
WAYS = ("quantize", "top-k")
# Each strategy with one of them in turn, fedavg with both; test_fuzz_replies.py has all strategies with all chains.
TURNS = {name: WAYS[number % 2] for number, name in enumerate(strategies.names())}
COMPRESSED = [
    (name, way)
    for name, turn in TURNS.items()
    for way in WAYS
    if (name, way) not in REFUSED and (way == turn or name == "fedavg" or (name, turn) in REFUSED)
]


# ---------------------------------------------------------------------- federations


@pytest.mark.first(1)
@pytest.mark.parametrize(("name", "wrapper"), COMPRESSED)
def test_every_strategy_federates(name: str, wrapper: str, tmp_path: Path) -> None:
    feedback = strategies.strategy_class(name).additive_across_rounds
    options = {"strategy": name, "wrappers": wrapper, f"{wrapper}.feedback": feedback, "num-server-rounds": 2}
    outcome = federate(tmp_path, QV | {"lora.ranks": "2,4"} | suiting(name) | options)
    assert outcome.summary["status"] == "completed"
    assert not any(line["refused"] for entry in outcome.rounds for line in entry["nodes"])


LEARNING: dict[str, Any] = {
    "num-server-rounds": 4, "local-steps": 10, "learning-rate": 0.01, "batch-size": 16, "lora.ranks": "2,4",
    "simulation.num-supernodes": 2, "data.partitioner": "iid", "data.train-rows": 240, "data.test-rows": 200,
}  # fmt: skip


def test_what_cannot_be_compressed_is_refused() -> None:
    sgd = TaskConfig(optimizer="sgd")
    for name in strategies.names():
        for wrapper in ("quantize", "top-k"):
            assert bool(strategies.load(name, [wrapper]).problems(sgd)) == ((name, wrapper) in REFUSED), (name, wrapper)


@pytest.mark.judged
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "options", "share"),
    [
        ("rbla", {"wrappers": "quantize"}, 0.29),
        ("rbla", {"wrappers": "quantize", "quantize.bits": 4}, 0.16),
        ("fedavg", {"wrappers": "top-k"}, 0.17),
    ],
)
def test_a_federation_learns(strategy: str, options: dict[str, Any], share: float, tmp_path: Path) -> None:
    """Adapters so small that two kilobytes of a reply, its metrics and headers, show beside them."""
    outcome = federate(tmp_path, LEARNING | {"strategy": strategy} | options)
    assert outcome.summary["base"] < 0.2
    assert outcome.summary["final"] > 0.45
    floats = sum(raw_bytes(sent(exchange.request)) for exchange in outcome.grid.of("train")[:2])
    assert outcome.rounds[1]["bytes_up"] < share * floats


def errors_of(grid: InProcessGrid, partition: int, name: str) -> Tensors:
    last = [exchange for exchange in grid.of("train") if exchange.partition == partition][-1]
    return ClientStore(local(grid, last), 3, after=True).client_state().get(f"wrapper-{name}", {})


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[list[Tensors]]]:
    """Three rounds of three nodes, of which node 1 misses the second; and every node's errors after each."""
    seen: list[list[Tensors]] = []
    grid = InProcessGrid(client_app.app, 3)

    def there() -> list[int]:
        done = len(grid.of("train"))
        if done in (3, 5, 8) and len(seen) < (3, 5, 8).index(done) + 1:
            seen.append([errors_of(grid, partition, "quantize") for partition in range(3)])
        grid.away = {1} if done == 3 else set()
        return InProcessGrid.get_node_ids(grid)

    grid.get_node_ids = there  # type: ignore[method-assign]
    outcome = federate(tmp_path_factory.mktemp("away"), QV | {"wrappers": "quantize", "num-server-rounds": 3}, grid)
    seen.append([errors_of(grid, partition, "quantize") for partition in range(3)])
    return outcome, seen


@pytest.mark.slow
def test_a_node_that_missed_a_round_keeps_its_error(away: tuple[Outcome, list[list[Tensors]]]) -> None:
    outcome, (first, second, third) = away
    assert [len(entry["nodes"]) for entry in outcome.rounds] == [0, 3, 2, 3]
    assert first[1]
    assert equal(first[1], second[1])
    assert not equal(first[0], second[0])
    assert not equal(second[1], third[1])


@pytest.mark.first(1)
def test_errors_stay_with_their_node(away: tuple[Outcome, list[list[Tensors]]]) -> None:
    """No two are alike; and a node's second update, made again from its own past, is the one that was sent, while with
    another's it is not."""
    outcome, (first, _, _) = away
    assert all(not equal(first[one], first[other]) for one, other in [(0, 1), (0, 2), (1, 2)])
    second = [exchange for exchange in outcome.grid.of("train") if exchange.partition == 1][1]

    def again(errors: Tensors) -> Tensors:
        here = local(outcome.grid, second)
        ClientStore(here, 1).keep({"wrapper-quantize": errors})
        return sent(trained(here, RecordDict(dict(second.request))))

    assert equal(again(first[1]), sent(second.reply))
    assert not equal(again(first[0]), sent(second.reply))
    assert not equal(again({}), sent(second.reply))
    assert all(raw_bytes(sent(e.reply)) < 0.3 * raw_bytes(sent(e.request)) for e in outcome.grid.of("train"))

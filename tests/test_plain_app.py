"""Our strategies and our ClientApp under a plain Flower ServerApp that is not ours and declares none of our keys."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord
from in_process import InProcessGrid, Watcher

import client_app
import strategies
from strategies.exchange.federation import Federation
from strategies.protocol import wire
from task.device import cores
from task.schema import ConfigError
from thistledown.processes.superlink import SuperLink

ROOT = Path(__file__).parents[1]
SETTINGS = {"local-steps": 2, "lora.ranks": "2,4", "data.train-rows": 100}
NODES = 2

PYPROJECT = """
[project]
name = "plain-app"
version = "1.0.0"
description = "Somebody else's app"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "server:app"
clientapp = "client_app:app"
"""

SERVER = """
from flwr.app import ConfigRecord, MetricRecord
from flwr.serverapp import ServerApp

import strategies

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = strategies.load("rbla")
    result = strategy.start(
        grid,
        num_rounds=1,
        train_config=ConfigRecord(SETTINGS),
    )
    loss = result.train_metrics_clientapp[1]["train-loss"]
    print(f"FINAL RESULT: {len(result.arrays)} tensors, loss {loss:.3f}")
"""


def test_start_needs_no_app_of_ours() -> None:
    """The same in this process: a strategy, a grid, a few settings."""
    grid = InProcessGrid(client_app.app, NODES)
    result = strategies.load("rbla").start(grid, num_rounds=1, train_config=ConfigRecord(dict(SETTINGS)))
    assert result.arrays is not None
    state = wire.from_arrays(result.arrays)
    assert state.rank == 4
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
    assert result.train_metrics_clientapp[1]["num-examples"] == SETTINGS["data.train-rows"]


def test_start_takes_up_what_another_start_left() -> None:
    """Result.arrays of one run are the initial_arrays of the next; the strategy can be used again."""
    strategy, config = strategies.load("rbla"), ConfigRecord(dict(SETTINGS))
    first = strategy.start(InProcessGrid(client_app.app, NODES), num_rounds=1, train_config=config)
    grid = InProcessGrid(client_app.app, NODES)
    second = strategy.start(grid, first.arrays, num_rounds=1, train_config=config)
    assert first.arrays is not None
    assert second.arrays is not None
    left, taken = wire.from_arrays(first.arrays).tensors, wire.unpack(grid.of("train")[1].request).tensors
    assert all(torch.equal(taken[name], tensor) for name, tensor in left.items())
    assert any((tensor != left[n]).any() for n, tensor in wire.from_arrays(second.arrays).tensors.items())


def test_start_gives_the_same_twice() -> None:
    """An instance keeps nothing, and neither does the process, that shows in the next run."""
    strategy, config = strategies.load("rbla"), ConfigRecord(dict(SETTINGS))
    arrays = [
        strategy.start(InProcessGrid(client_app.app, NODES), num_rounds=1, train_config=config).arrays for _ in "12"
    ]
    one, other = (wire.from_arrays(found).tensors for found in arrays if found is not None)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_start_leaves_evaluation_to_whom_it_is_given() -> None:
    """Flower's evaluate_fn is called with plain arrays, at the start and after every round."""
    seen = []
    strategies.load("fedavg").start(
        InProcessGrid(client_app.app, NODES),
        num_rounds=2,
        train_config=ConfigRecord(SETTINGS | {"tuning": "head"}),
        evaluate_fn=lambda number, arrays: seen.append((number, set(arrays.to_torch_state_dict()))),
    )
    assert seen == [(number, {"classifier.weight", "classifier.bias"}) for number in range(3)]


def test_lists_of_somebodys_scores_are_in_the_result_and_numbers_in_reports() -> None:
    watcher = Watcher()
    result = strategies.load("fedavg").start(
        InProcessGrid(client_app.app, NODES),
        num_rounds=1,
        train_config=ConfigRecord(SETTINGS | {"tuning": "head"}),
        evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": 0.5, "by-class": [0.25, 0.75]}),
        federation=Federation(callbacks=(watcher,)),
    )
    assert [report.evaluated_by_server for report, _ in watcher.seen] == [{"accuracy": 0.5}] * 2
    assert dict(result.evaluate_metrics_serverapp[1]) == {"accuracy": 0.5, "by-class": [0.25, 0.75]}


def test_wrappers_are_named_as_in_a_run_config() -> None:
    names = [type(wrapper).__name__ for wrapper in strategies.load("fedavg", "norm-bound, quantize").wrappers]
    assert names == ["NormBound", "Quantize"]
    mixed = strategies.load("fedavg", [strategies.load_wrapper("norm-bound"), "quantize"])
    assert [type(wrapper).__name__ for wrapper in mixed.wrappers] == names
    with pytest.raises(ConfigError, match="did you mean 'quantize'"):
        strategies.load("fedavg", ["quantise"])


def test_a_federation_is_checked_wherever_it_comes_from() -> None:
    with pytest.raises(ConfigError) as error:
        Federation(evaluate_every=0, fraction_train=7.0, node_names="any")
    assert [problem.split(" must")[0].split(" is none")[0] for problem in error.value.problems] == [
        "federation: fraction_train = 7.0",
        "federation: evaluate_every = 0",
        "federation: node_names = 'any'",
    ]


def test_an_evaluation_that_could_not_differ_is_refused() -> None:
    strategy, config = strategies.load("fedavg"), ConfigRecord(SETTINGS | {"tuning": "head", "evaluate": "nodes"})
    other = ConfigRecord({"data.holdout": 0.5, "threads": 1})
    grid = InProcessGrid(client_app.app, NODES)
    with pytest.raises(ConfigError, match=r"'data\.holdout' cannot differ from train_config"):
        strategy.start(grid, num_rounds=1, train_config=config, evaluate_config=other)
    assert not grid.exchanges


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The folder of an app: twenty lines of server, and the three packages that a node needs."""
    folder = tmp_path / "plainapp"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "server.py").write_text(SERVER.replace("SETTINGS", repr(SETTINGS)))
    for package in ("task", "strategies", "client_app"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.flower
def test_a_plain_app_runs(plain: Path) -> None:
    with SuperLink() as superlink:
        run = superlink.submit(plain, "", nodes=NODES, cpus=cores(), gpus=0.0)
        log, _ = run.communicate(timeout=300)
        started = re.search(r"started run (\d+)", log)
        assert started is not None, log
        assert superlink.status(started[1])[0] == "finished:completed", log
    assert re.search(r"FINAL RESULT: 50 tensors, loss \d+\.\d{3}", log), log

"""What a run does grows with nodes and with rounds, and not with their squares: calls are counted, not seconds."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from in_process import federate

from strategies.protocol import instructions
from task.config import TaskConfig
from task.data import partition
from task.data.prepared import data_index
from task.storage.store import Store

SMALL = {"tuning": "head", "evaluate": "server", "data.train-rows": 300, "examine-rows": 0, "data.partitioner": "iid"}


def calls(work: Callable[[], object]) -> int:
    """Return how many functions of Python and C are called in this thread."""
    counted = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


def growth(tmp_path: Path, sizes: tuple[int, int, int], options: Callable[[int], dict[str, Any]]) -> float:
    """Return the second step of the number of calls over the first, for sizes each twice the one before; linear work
    has 2, quadratic work 4."""
    federate(tmp_path / "warm", SMALL | options(sizes[0]))  # imports and everything that is made once
    few, more, most = (calls(lambda n=n: federate(tmp_path / str(n), SMALL | options(n))) for n in sizes)
    return (most - more) / (more - few)


@pytest.mark.slow
def test_nodes_cost_the_same_each(tmp_path: Path) -> None:
    def options(nodes: int) -> dict[str, Any]:
        return {"simulation.num-supernodes": nodes, "fraction-train": 2 / nodes}

    assert growth(tmp_path, (20, 40, 80), options) < 2.4


@pytest.mark.slow
def test_rounds_cost_the_same_each(tmp_path: Path) -> None:
    assert growth(tmp_path, (4, 8, 16), lambda rounds: {"num-server-rounds": rounds}) < 2.4


def test_a_process_parses_instructions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import strategies

    parsed: list[object] = []
    read = TaskConfig.read
    monkeypatch.setattr(TaskConfig, "read", lambda values: parsed.append(values) or read(values))
    records = [
        instructions.write(TaskConfig.read({"learning-rate": rate}), strategies.load("fedavg"), "", rank, token="t")
        for rate, rank in ((0.0123, 4), (0.0123, 8), (0.0124, 8))  # the rank is no setting of the task
    ]
    parsed.clear()
    found = [instructions.task_of(record) for record in records]
    assert [config.learning_rate for config in found] == [0.0123, 0.0123, 0.0124]
    assert len(parsed) == 2


def test_the_names_of_sites_are_found_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "\n".join(f"text {n},{n % 2},site {n % 50}" for n in range(400))
    (tmp_path / "rows.csv").write_text(f"text,label,site\n{rows}\n", encoding="utf-8")
    values = {
        "model.name": "given",
        "data.name": str(tmp_path / "rows.csv"),
        "data.id-column": "site",
        "data.partitioner": "natural",
    }
    texts = {
        "task.kind": "text-classification",
        "data.test-split": "",
        "data.test-fraction": 0.0,
        "data.validation-fraction": 0.0,
    }
    config = TaskConfig.read({**values, **texts, "evaluate": "nodes"})
    plan = data_index(config, store)
    parts = partition.partition(config, plan, 50, store)
    looks: list[object] = []
    unique = np.unique
    monkeypatch.setattr(partition.np, "unique", lambda *given: looks.append(given) or unique(*given))
    names = [partition.node_name(config, plan, parts, node) for node in range(50)]
    assert sorted(names) == sorted(f"site {n}" for n in range(50))
    assert len(looks) == 50

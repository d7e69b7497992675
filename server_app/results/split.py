"""How training rows are split over simulated nodes: split.json, with the rows of each node by class.

It is for data that the server holds itself. Nodes with rows of their own tell no classes, so their runs have no file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from task.config import TaskConfig
from task.data.partition import node_names, partition
from task.data.prepared import data_index
from task.modes import as_the_folder
from task.storage.store import Store

SPLIT = "split.json"
CELLS = 100_000  # nodes times classes; above it, only rows are counted


def write_split(folder: Path, config: TaskConfig, num_nodes: int, store: Store) -> None:
    """Write the split to a results folder, unless nodes have their own rows."""
    if config.data.partitioner.own_rows:
        return
    plan = data_index(config, store)
    parts = partition(config, plan, num_nodes, store)
    labels = list(plan.classes) if len(plan.classes) * len(parts) <= CELLS else []
    counts = [np.bincount(plan.train.labels[part], minlength=len(labels)) if labels else [len(part)] for part in parts]
    nodes = {name: [int(n) for n in own] for name, own in zip(node_names(config, plan, parts), counts, strict=True)}
    draft = folder / f".{SPLIT}"
    draft.write_text(json.dumps({"labels": labels, "nodes": nodes}, ensure_ascii=False) + "\n", encoding="utf-8")
    as_the_folder(draft)
    draft.replace(folder / SPLIT)


def read_split(folder: Path) -> dict[str, Any]:
    """Return the split of a run; {} if its folder has none."""
    path = folder / SPLIT
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found

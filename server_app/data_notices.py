"""Notices about the data before a run: classes that a part lacks, nodes with a single class."""

from collections.abc import Iterator, Sequence

import numpy as np

from task.config import TaskConfig
from task.data.index import DataIndex
from task.data.partition import node_names
from task.data.partitioners.base import Positions
from task.training.rates import unusual

SHOWN = 10


def of_run(task: TaskConfig, data_index: DataIndex, split: Sequence[Positions]) -> Iterator[str]:
    """Return notices about the learning rate, the data, and the rows of the simulated nodes."""
    if rate := unusual(task):
        yield rate
    yield from of_parts(data_index)
    yield from of_split(split, data_index, node_names(task, data_index, split) if split else [])


def of_parts(data_index: DataIndex) -> Iterator[str]:
    """Return notices about the parts of the data. Class names belong to the run and reveal nothing about a row."""
    names = data_index.classes
    for name, part in data_index.parts.items():
        if not len(part) or not names:
            continue
        there = set(np.unique(part.labels).tolist())
        if absent := [label for number, label in enumerate(names) if number not in there]:
            yield f"the {name} part has no rows of {_listed(absent)} ({len(names)} classes in total)"


def of_split(split: Sequence[Positions], data_index: DataIndex, called: Sequence[str]) -> Iterator[str]:
    """Return notices about the rows of the simulated nodes; `called` are the names of the nodes."""
    if len(data_index.classes) < 2:
        return
    labels = data_index.train.labels
    if lonely := [name for name, rows in zip(called, split, strict=True) if len(np.unique(labels[rows])) == 1]:
        yield f"{len(lonely)} of {len(split)} nodes have rows of a single class: {_listed(lonely)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

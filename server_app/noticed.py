"""What a person would want to know of the rows before a run: classes that a part lacks, nodes with one class."""

from collections.abc import Iterator, Sequence

import numpy as np

from task.config import TaskConfig
from task.data.index import DataIndex
from task.data.partition import node_names
from task.data.partitioners.base import Positions
from task.training.rates import unusual

SHOWN = 10


def of_run(task: TaskConfig, data_index: DataIndex, split: Sequence[Positions]) -> Iterator[str]:
    """What is said before a run of its rate, its data, and the rows of its simulated nodes."""
    if rate := unusual(task):
        yield rate
    yield from of_parts(data_index)
    yield from of_split(split, data_index, node_names(task, data_index, split) if split else [])


def of_parts(data_index: DataIndex) -> Iterator[str]:
    """What is said of the parts of the data. Class names are the run's, and no secret of a row."""
    names = data_index.classes
    for name, part in data_index.parts.items():
        if not len(part) or not names:
            continue
        there = set(np.unique(part.labels).tolist())
        if absent := [label for number, label in enumerate(names) if number not in there]:
            yield f"the {name} part has no row of {_listed(absent)}, of {len(names)} classes"


def of_split(split: Sequence[Positions], data_index: DataIndex, called: Sequence[str]) -> Iterator[str]:
    """What is said of the rows of simulated nodes, which are called so."""
    if len(data_index.classes) < 2:
        return
    labels = data_index.train.labels
    if lonely := [name for name, rows in zip(called, split, strict=True) if len(np.unique(labels[rows])) == 1]:
        yield f"{len(lonely)} of {len(split)} nodes with rows of one class alone: {_listed(lonely)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

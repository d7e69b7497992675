"""The division of the train part among simulated nodes by the task's partitioner; computed once and stored."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from task.config import TaskConfig
from task.data.index import DataIndex, Part
from task.data.partitioners.base import Partitioner, Positions, SplitError
from task.data.rows import mapped
from task.schema import flatten
from task.seeds import derive
from task.storage.store import Store, recipe_hash

log = logging.getLogger(__name__)

_EDITION = 3  # version of the stored format
_SHOWN = 20  # nodes in a table
_LONGEST_NAME = 100  # characters of a node's name


def partition(config: TaskConfig, plan: DataIndex, num_partitions: int, store: Store) -> Sequence[Positions]:
    """Return the sorted positions in the train part of every partition: disjoint, none empty; mapped into memory,
    read-only.

    Equal values of `config.seed` give equal splits. Raises SplitError.
    """
    rule = config.data.partitioner
    key = recipe_hash([_EDITION, num_partitions, rule.name, flatten(rule), config.seed, plan.key])
    with store.made("splits", key, f"{num_partitions} parts, {rule.name}, of data index {plan.key}") as folder:
        if folder is not None:
            parts = _divide(config, plan.train, num_partitions)
            np.save(folder / "positions.npy", np.concatenate(parts))
            np.save(folder / "ends.npy", np.cumsum([len(part) for part in parts]))
    return _kept(store.path("splits", key))


@lru_cache(maxsize=4)  # used for every message to every simulated node; the data of a key never changes
def _kept(folder: Path) -> tuple[Positions, ...]:
    return tuple(np.split(mapped(folder / "positions.npy"), mapped(folder / "ends.npy")[:-1]))


def node_names(config: TaskConfig, plan: DataIndex, parts: Sequence[Positions]) -> list[str]:
    """Return the names of simulated nodes: their sites if the split is by sites and each site has its own node, else
    their numbers."""
    numbers = [str(node) for node in range(len(parts))]
    if not config.data.partitioner.needs_ids or plan.train.ids is None:
        return numbers
    sites = [np.unique(plan.train.ids[part]) for part in parts]
    if any(len(ids) != 1 for ids in sites):
        return numbers
    names = [plan.sites[int(ids[0])] for ids in sites]
    return names if all(name.isprintable() and len(name) <= _LONGEST_NAME for name in names) else numbers


@dataclass(frozen=True)
class _Division:
    """A division of rows; `key` says all that its names follow from."""

    key: str
    config: TaskConfig = field(compare=False)
    plan: DataIndex = field(compare=False)
    parts: Sequence[Positions] = field(compare=False)


def node_name(config: TaskConfig, plan: DataIndex, parts: Sequence[Positions], node: int) -> str:
    """Return the name of one simulated node; a process finds the names of all nodes once."""
    rule = config.data.partitioner
    key = recipe_hash([len(parts), rule.name, flatten(rule), config.seed, plan.key])
    return _names(_Division(key, config, plan, parts))[node]


@lru_cache(maxsize=4)
def _names(division: _Division) -> list[str]:
    return node_names(division.config, division.plan, division.parts)


def table(
    parts: Sequence[Positions], labels: Positions, names: tuple[str, ...], nodes: Sequence[str] | None = None
) -> str:
    """Return a text table of rows per node and class (only rows if classes have no names), one line per node, for the
    first nodes. `nodes` are their names (None: numbers)."""
    counts = [np.bincount(labels[part], minlength=len(names)) for part in parts[:_SHOWN]]
    heads = [f"{name[:8]:>5}" for name in names]
    called = list(nodes or map(str, range(len(parts))))[:_SHOWN]
    width = max(4, *map(len, called))
    lines = [f"{'node':<{width}}   rows  " + " ".join(heads)]
    for node, count in zip(called, counts, strict=True):
        cells = " ".join(f"{number or '.':>{len(head)}}" for number, head in zip(count, heads))
        lines.append(f"{node:>{width}} {count.sum():>6}  {cells}")
    if len(parts) > _SHOWN:
        sizes = [len(part) for part in parts]
        lines.append(f"... and {len(parts) - _SHOWN} more; {min(sizes)} to {max(sizes)} rows a node")
    return "\n".join(lines)


def _divide(config: TaskConfig, part: Part, nodes: int) -> list[Positions]:
    if not 0 < nodes <= len(part):
        raise SplitError(f"{len(part)} rows cannot be divided among {nodes} nodes; each needs at least one")
    partitioner = config.data.partitioner
    parts = partitioner.divide(part, nodes, derive(config.seed, "partition") % 2**32)
    _check(partitioner, parts, len(part), nodes)
    return [np.sort(rows) for rows in parts]


def _check(partitioner: Partitioner, parts: Sequence[Positions], rows: int, nodes: int) -> None:
    if len(parts) != nodes:
        raise SplitError(f"the {partitioner.name} split makes {len(parts)} parts for {nodes} nodes")
    if min(len(part) for part in parts) == 0:
        raise partitioner.refusal(rows, nodes)
    every = np.concatenate(parts)
    unique = np.unique(every)
    if len(unique) < len(every) or unique.min() < 0 or unique.max() >= rows:
        raise SplitError(f"the {partitioner.name} split gives a row to two nodes, or rows that do not exist")
    if len(every) < rows:
        log.info("%d of %d rows are left over by the %s split", rows - len(every), rows, partitioner.name)

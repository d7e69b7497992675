"""Which rows of the train part each simulated node gets, by flwr-datasets or by our own staircase; computed once
and kept."""

import logging
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.config import TaskConfig
from task.data.index import DataIndex
from task.data.rows import mapped
from task.seeds import derive
from task.storage.store import Store, recipe_hash

log = logging.getLogger(__name__)

Positions = NDArray[np.int64]
_EDITION = 2  # of what is stored
_SHOWN = 20  # nodes in a table
_LONGEST_NAME = 100  # of a node


class SplitError(ValueError):
    """Rows that cannot be divided as asked; the message has counts, keys of the order and what to change."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


def partition(config: TaskConfig, plan: DataIndex, num_partitions: int, store: Store) -> Sequence[Positions]:
    """Sorted positions in the train part of every partition: disjoint, none empty; mapped into memory, not to be
    written.

    Equal `config.seed` give equal splits. Raises SplitError.
    """
    data = config.data
    settings = [data.partitioner, data.alpha, data.min_partition_size, data.shards_per_node, config.seed]
    key = recipe_hash([_EDITION, num_partitions, settings, plan.key])
    with store.made("splits", key, f"{num_partitions} parts, {data.partitioner}, of data index {plan.key}") as folder:
        if folder is not None:
            parts = _divide(config, plan.train.labels, plan.train.ids, num_partitions)
            np.save(folder / "positions.npy", np.concatenate(parts))
            np.save(folder / "ends.npy", np.cumsum([len(part) for part in parts]))
    return _kept(store.path("splits", key))


@lru_cache(maxsize=4)  # every message to every simulated node asks; what is under a key never changes
def _kept(folder: Path) -> tuple[Positions, ...]:
    return tuple(np.split(mapped(folder / "positions.npy"), mapped(folder / "ends.npy")[:-1]))


def node_names(config: TaskConfig, plan: DataIndex, parts: Sequence[Positions]) -> list[str]:
    """Return what simulated nodes are called: by their site, where the split goes by sites and each has a node of its
    own, else by their number."""
    numbers = [str(node) for node in range(len(parts))]
    if config.data.partitioner != "natural" or plan.train.ids is None:
        return numbers
    sites = [np.unique(plan.train.ids[part]) for part in parts]
    if any(len(ids) != 1 for ids in sites):
        return numbers
    names = [plan.sites[int(ids[0])] for ids in sites]
    return names if all(name.isprintable() and len(name) <= _LONGEST_NAME for name in names) else numbers


def table(
    parts: Sequence[Positions], labels: Positions, names: tuple[str, ...], nodes: Sequence[str] | None = None
) -> str:
    """Return rows per node and class (rows alone where classes have no names) as text, a line a node; of many nodes the
    first ones. `nodes` are their names (None: numbers)."""
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


def _divide(config: TaskConfig, labels: Positions, ids: Positions | None, nodes: int) -> list[Positions]:
    if not 0 < nodes <= len(labels):
        raise SplitError(f"{len(labels)} rows cannot be divided among {nodes} nodes; each needs at least one")
    if config.data.partitioner == "shards" and nodes * config.data.shards_per_node > len(labels):
        raise SplitError(_refusal(config, len(labels), nodes))
    seed = derive(config.seed, "partition") % 2**32
    if config.data.partitioner == "staircase":
        parts = _staircase(labels, nodes, seed)
    else:
        parts = _dealt(_by_flower(config, labels, ids, nodes, seed), nodes)
    _check(parts, len(labels), config, nodes)
    return parts


def _by_flower(config: TaskConfig, labels: Positions, ids: Positions | None, nodes: int, seed: int) -> list[Positions]:
    import datasets

    order = np.random.default_rng(seed).permutation(len(labels))  # else partitioners that cut would keep file order
    columns = {"position": order, "label": labels[order]} | ({} if ids is None else {"id": ids[order]})
    partitioner = _partitioner(config, ids, nodes, seed)
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of every attempt; the outcome says it all
            warnings.simplefilter("error", RuntimeWarning)  # proportions that do not add up
            return [_positions(partitioner.load_partition(number)) for number in range(partitioner.num_partitions)]
    except (ValueError, RuntimeWarning) as error:
        raise SplitError(_refusal(config, len(labels), nodes)) from error


def _staircase(labels: Positions, nodes: int, seed: int) -> list[Positions]:
    """Rows and labels grow together: of C classes and N nodes, class c goes in equal shares to the nodes from
    floor(c N / C) on, so with as many nodes as classes node i holds the classes 0 to i.

    Chen et al., arXiv 2408.08699, as in the repository of the first author. Of rows that do not divide evenly the
    last nodes get one more each.
    """
    random = np.random.default_rng(seed)
    classes = np.unique(labels)
    shares: list[list[Positions]] = [[] for _ in range(nodes)]
    for number, label in enumerate(classes):
        owners = range(nodes - 1, number * nodes // len(classes) - 1, -1)
        rows = random.permutation(np.flatnonzero(labels == label))
        for node, share in zip(owners, np.array_split(rows, len(owners)), strict=True):
            shares[node].append(share)
    return [np.sort(np.concatenate(node)) for node in shares]


def _positions(rows: Any) -> Positions:
    return np.sort(np.array(rows["position"], np.int64))


def _partitioner(config: TaskConfig, ids: Positions | None, nodes: int, seed: int) -> Any:
    from flwr_datasets import partitioner as kinds

    data = config.data
    if data.partitioner == "none":
        raise SplitError(
            "data.partitioner = 'none': nodes bring their own rows (data-path), so there is nothing to divide"
        )
    if data.partitioner == "natural":
        _check_natural(config, ids, nodes)
        return kinds.NaturalIdPartitioner("id")
    if data.partitioner == "dirichlet":
        return kinds.DirichletPartitioner(
            nodes, "label", data.alpha, data.min_partition_size, self_balancing=True, seed=seed
        )
    if data.partitioner == "shards":
        return kinds.ShardPartitioner(nodes, "label", num_shards_per_partition=data.shards_per_node, seed=seed)
    by_size = {
        "iid": kinds.IidPartitioner,
        "linear": kinds.LinearPartitioner,
        "square": kinds.SquarePartitioner,
        "exponential": kinds.ExponentialPartitioner,
    }
    return by_size[data.partitioner](nodes)


def _check_natural(config: TaskConfig, ids: Positions | None, nodes: int) -> None:
    if ids is None:
        raise SplitError("data.partitioner = 'natural' needs data.id-column, the column that names a row's client")
    count = len(np.unique(ids))
    if count < nodes:
        column = config.data.id_column
        raise SplitError(f"column '{column}' names {count} clients for {nodes} nodes; use at most {count} nodes")
    if count > nodes:
        log.info("%d natural clients on %d nodes: dealt in turn, %.1f to a node", count, nodes, count / nodes)


def _dealt(found: list[Positions], nodes: int) -> list[Positions]:
    """One list of rows per node; natural clients beyond the number of nodes go round."""
    if len(found) == nodes:
        return found
    return [np.sort(np.concatenate(found[node::nodes])) for node in range(nodes)]


def _check(parts: list[Positions], rows: int, config: TaskConfig, nodes: int) -> None:
    every = np.concatenate(parts)
    unique = np.unique(every)
    if len(unique) < len(every) or unique.min() < 0 or unique.max() >= rows:
        raise SplitError(f"the {config.data.partitioner} split gives a row to two nodes, or rows that do not exist")
    if min(len(part) for part in parts) == 0:
        raise SplitError(_refusal(config, rows, nodes))
    if len(every) < rows:
        log.info("%d of %d rows are left over by the %s split", rows - len(every), rows, config.data.partitioner)


def _refusal(config: TaskConfig, rows: int, nodes: int) -> str:
    data = config.data
    asked = f"{rows} rows cannot be divided among {nodes} nodes by the {data.partitioner} split"
    if data.partitioner == "dirichlet":
        limits = f"data.alpha = {data.alpha:g} and data.min-partition-size = {data.min_partition_size}"
        advice = "use fewer nodes, a larger alpha, a smaller min-partition-size, or the iid split"
        return f"{asked} with {limits} ({rows / nodes:.1f} rows a node on average); {advice}"
    if data.partitioner == "shards":
        return f"{asked} with data.shards-per-node = {data.shards_per_node}; use fewer nodes or fewer shards"
    return f"{asked}: some would get none; use fewer nodes, or the iid split"

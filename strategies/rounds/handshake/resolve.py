"""Fill in label names and the date if the settings leave them open, and check that the data can be split."""

import logging
from dataclasses import replace

from task.config import TaskConfig
from task.data.partition import node_names, partition, table
from task.data.prepared import DataError, DataIndex, data_index
from task.kinds import registry as kinds
from task.storage.store import Store

LOG = logging.getLogger("flwr")


def needs_no_data(config: TaskConfig) -> bool:
    """Return whether nodes bring all data and score it themselves, so that the server may have none."""
    named = bool(config.data.labels) or not kinds.of(config).drawn_head
    return config.data.partitioner.own_rows and named and config.evaluate == "nodes"


def resolve(config: TaskConfig, store: Store, num_nodes: int) -> TaskConfig:
    """Return the settings with label names and date filled in, after checking that the data can be split over the
    nodes.

    Raises DataError, SplitError.
    """
    config = replace(config, data=kinds.of(config).resolve(config.data))
    if needs_no_data(config):
        return config
    plan = data_index(config, store)
    _check_scored(config, plan)
    if not config.data.partitioner.own_rows:
        _check_split(config, plan, store, num_nodes)
    return replace(config, data=replace(config.data, labels=plan.labels))


def _check_scored(config: TaskConfig, plan: DataIndex) -> None:
    """Raise DataError if the server has to score a part that has no rows."""
    for name in ("validation", "test") if config.evaluate != "nodes" else ():
        if not len(plan.parts[name]):
            raise DataError(
                f"the {name} part of data.name = '{config.data.name}' has no rows, and evaluate = '{config.evaluate}' "
                f"scores it: set data.{name}-fraction above 0, name a data.{name}-split, or set evaluate = 'nodes'"
            )


def _check_split(config: TaskConfig, plan: DataIndex, store: Store, num_nodes: int) -> None:
    split = partition(config, plan, num_nodes, store)
    nodes = node_names(config, plan, split)
    for line in table(split, plan.train.labels, plan.classes, nodes).splitlines():
        LOG.info("%s", line)

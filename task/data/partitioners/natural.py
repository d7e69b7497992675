"""The natural clients of the data: every row stays with the client of its id."""

import logging
from dataclasses import dataclass

import numpy as np

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions, SplitError, divide_by_flower

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Natural(Partitioner):
    """The natural split: one client per node. If there are more clients than nodes, they are dealt to them in turn."""

    needs_ids = True

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows. Raises SplitError for fewer clients than nodes."""
        from flwr_datasets.partitioner import NaturalIdPartitioner

        if part.ids is None:
            raise SplitError("data.partitioner = 'natural' needs data.id-column, the column that names a row's client")
        count = len(np.unique(part.ids))
        if count < nodes:
            raise SplitError(f"data.id-column names {count} clients for {nodes} nodes; use at most {count} nodes")
        clients = divide_by_flower(self, NaturalIdPartitioner("id"), part, nodes, seed)
        if count == nodes:
            return clients
        log.info("%d natural clients on %d nodes: dealt in turn, %.1f to a node", count, nodes, count / nodes)
        return [np.sort(np.concatenate(clients[node::nodes])) for node in range(nodes)]

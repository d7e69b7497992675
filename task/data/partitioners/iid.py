"""Random rows, the same number for every node."""

from dataclasses import dataclass

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions, divide_by_flower


@dataclass(frozen=True)
class Iid(Partitioner):
    """Independent and identically distributed rows."""

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows."""
        from flwr_datasets.partitioner import IidPartitioner

        return divide_by_flower(self, IidPartitioner(nodes), part, nodes, seed)

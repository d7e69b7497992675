"""Random rows; a node's share grows with its number."""

from dataclasses import dataclass

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions, divide_by_flower


@dataclass(frozen=True)
class Linear(Partitioner):
    """The linear split: node i of N, counted from 0, gets a share proportional to i + 1."""

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows."""
        from flwr_datasets.partitioner import LinearPartitioner

        return divide_by_flower(self, LinearPartitioner(nodes), part, nodes, seed)

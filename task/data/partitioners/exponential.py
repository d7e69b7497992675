"""Rows at random; a node's share grows exponentially with its number."""

from dataclasses import dataclass

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions, divide_by_flower


@dataclass(frozen=True)
class Exponential(Partitioner):
    """The exponential split: node i of N, counted from 0, gets a share proportional to exp(i + 1)."""

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows."""
        from flwr_datasets.partitioner import ExponentialPartitioner

        return divide_by_flower(self, ExponentialPartitioner(nodes), part, nodes, seed)

"""A few shards of rows sorted by label for every node, so that each node has few classes."""

from dataclasses import dataclass

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions, divide_by_flower
from task.schema import option


@dataclass(frozen=True)
class Shards(Partitioner):
    """The shards split: rows sorted by label are cut into nodes * shards_per_node shards, which are dealt at random.

    Source: McMahan et al., arXiv 1602.05629.
    """

    table = "data"
    needs_labels = True

    shards_per_node: int = option(2, low=1, doc="shards of equal labels that a node gets from the shards split")

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows; rows beyond shards of equal size are left over."""
        from flwr_datasets.partitioner import ShardPartitioner

        if nodes * self.shards_per_node > len(part):
            raise self.refusal(len(part), nodes)
        theirs = ShardPartitioner(nodes, "label", num_shards_per_partition=self.shards_per_node, seed=seed)
        return divide_by_flower(self, theirs, part, nodes, seed)

    def advice(self, rows: int, nodes: int) -> str:
        """Return advice on the option."""
        return f" with data.shards-per-node = {self.shards_per_node}; use fewer nodes or fewer shards"

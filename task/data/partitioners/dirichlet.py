"""Label skew by a Dirichlet distribution: nodes have the classes in different proportions."""

from dataclasses import dataclass

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions, divide_by_flower
from task.schema import option


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """The Dirichlet split: for every class the nodes' shares are drawn from Dir(alpha), until all have enough rows.

    Source: Hsu et al., arXiv 1909.06335; Yurochkin et al., arXiv 1905.12022.
    """

    table = "data"
    needs_labels = True

    alpha: float = option(0.5, low=1e-3, doc="concentration of the Dirichlet split; smaller is more skewed")
    min_partition_size: int = option(5, low=1, doc="rows that every node must get from the Dirichlet split")

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows."""
        from flwr_datasets.partitioner import DirichletPartitioner

        theirs = DirichletPartitioner(
            nodes, "label", self.alpha, self.min_partition_size, self_balancing=True, seed=seed
        )
        return divide_by_flower(self, theirs, part, nodes, seed)

    def advice(self, rows: int, nodes: int) -> str:
        """Return advice on both options."""
        limits = f"data.alpha = {self.alpha:g} and data.min-partition-size = {self.min_partition_size}"
        cure = "use fewer nodes, a larger alpha, a smaller min-partition-size, or the iid split"
        return f" with {limits} ({rows / nodes:.1f} rows a node on average); {cure}"

"""No division: every node has its own rows."""

from dataclasses import dataclass

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions, SplitError


@dataclass(frozen=True)
class OwnRows(Partitioner):
    """The partitioner of deployed nodes, whose node config has a data-path."""

    own_rows = True

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Raise SplitError."""
        raise SplitError(
            "data.partitioner = 'none': nodes bring their own rows (data-path), so there is nothing to divide"
        )

"""Random rows, the same number for every node."""

from dataclasses import dataclass

import numpy as np

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions


@dataclass(frozen=True)
class Iid(Partitioner):
    """Independent and identically distributed rows: equal cuts of the shuffled rows, as flwr-datasets makes them."""

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows."""
        order = np.random.default_rng(seed).permutation(len(part))
        return [np.sort(rows) for rows in np.array_split(order, nodes)]

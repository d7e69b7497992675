"""Rows and labels whose numbers grow together from node to node."""

from dataclasses import dataclass

import numpy as np

from task.data.index import Part
from task.data.partitioners.base import Partitioner, Positions


@dataclass(frozen=True)
class Staircase(Partitioner):
    """The staircase split. With C classes and N nodes, the nodes from floor(c N / C) on get equal shares of class c.
    With as many nodes as classes, node i has the classes 0 to i. If rows do not divide evenly, the last nodes get one
    more each.

    Source: Chen et al., arXiv 2408.08699, as in the repository of the first author.
    """

    needs_labels = True

    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the sorted positions of every node's rows."""
        random = np.random.default_rng(seed)
        classes = np.unique(part.labels)
        shares: list[list[Positions]] = [[] for _ in range(nodes)]
        for number, label in enumerate(classes):
            owners = range(nodes - 1, number * nodes // len(classes) - 1, -1)
            rows = random.permutation(np.flatnonzero(part.labels == label))
            for node, share in zip(owners, np.array_split(rows, len(owners)), strict=True):
                shares[node].append(share)
        return [np.sort(np.concatenate(node)) for node in shares]

"""Median: for every number of an update, the median over nodes.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", arXiv
1803.01498, Definition 1 and Algorithm 1, Option I. Fewer than half of the nodes may send anything: every number of the
result still lies between the smallest and the largest value of the other nodes. The price is that nodes whose data
differ are not averaged but outvoted.

All nodes count alike, whatever rows they report: a weight is a claim, and a node that claims a million rows would be
the median. If nodes have different ranks, a slice is combined over the nodes that have it. Updates wait in a file;
memory does not grow with their number (`strategies/algebra/robust.py`).
"""

from dataclasses import dataclass

from strategies.algebra.robust import Columns, median
from strategies.wrappers.parts.order_statistics import OrderStatistic


@dataclass(frozen=True)
class Median(OrderStatistic):
    """Median: `min_owners` is the least number of nodes that must have a number for it to change."""

    def rule(self, columns: Columns) -> Columns:
        return median(columns)

"""Trimmed mean: for every number of an update, the mean over nodes without the largest and the smallest values.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", arXiv
1803.01498, Definition 2 and Algorithm 1, Option II: beta is `trim`. Up to that share of the nodes may send anything:
every number of the result still lies between the smallest and the largest value of the other nodes.

All nodes count alike, whatever rows they report: a weight is a claim, and a node that claims a million rows would be
the mean. If nodes have different ranks, a slice is combined over the nodes that have it, and the share is of these.
Updates wait in a file; memory does not grow with their number (`strategies/algebra/robust.py`).
"""

from dataclasses import dataclass

from strategies.algebra.robust import Columns, trimmed_mean
from strategies.wrappers.parts.order_statistics import OrderStatistic
from task.schema import option


@dataclass(frozen=True)
class TrimmedMean(OrderStatistic):
    """Trimmed mean: `trim` is the share of the nodes that is left out at each end, rounded up; `min_owners` is the
    least number of nodes that must have a number for it to change."""

    trim: float = option(
        0.1,
        low=0.0,
        high=0.5,
        doc="share of the nodes left out at each end of every number, rounded up; all others count alike",
    )

    def rule(self, columns: Columns) -> Columns:
        return trimmed_mean(columns, self.trim)

"""Limit how many rows a node counts for. The number of rows is a claim that nobody can check, and it weighs the mean.

After Portnoy, Tirosh, Hendler, "Towards Federated Learning With Byzantine-Robust Client Weighting", arXiv 2004.04986,
who truncate weights before they are used. A claim above `ratio` times the median claim of the connected nodes is not
believed at all: such a node counts as the median node, so that claiming more gains nothing. Claims within the ratio are
believed. For updates the claims are in the profiles, which are known before any reply. For scores they are in the
scores, all of which have arrived before they are averaged.
"""

import statistics
from collections.abc import Mapping

from strategies.exchange.types import MAX_ROWS, Metrics


def limits(claims: Mapping[str, int | float], ratio: float) -> dict[str, int]:
    """Return the most rows that each node counts for, by name, from their claims; `ratio` = 0 believes every claim.

    For an even number of claims the lower one in the middle is the median, so half of the nodes may lie.
    """
    some = [int(claim) for claim in claims.values() if claim > 0]
    if not ratio or not some:
        return dict.fromkeys(claims, MAX_ROWS)
    middle = statistics.median_low(some)
    return {name: middle if claim > ratio * middle else MAX_ROWS for name, claim in claims.items()}


def counted(metrics: Mapping[str, int | float], limit: int) -> Metrics:
    """Return a node's metrics, with no more rows than it counts for."""
    return {**metrics, "num-examples": min(metrics["num-examples"], limit)}

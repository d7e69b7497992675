"""How many rows a node counts for. Rows are a claim that nobody can check, and they weigh the mean.

After Portnoy, Tirosh, Hendler, "Towards Federated Learning With Byzantine-Robust Client Weighting", arXiv 2004.04986,
who cut weights off before they are used. A claim above `ratio` times the median claim of the nodes that are there is
not believed at all: such a node counts as the median one, so that to claim more gains nothing. What is within the ratio
is believed. For updates the claims are those of the profiles, which are known before any reply; for scores, of which
all are there before they are averaged, those of the scores.
"""

import statistics
from collections.abc import Mapping

from strategies.exchange.types import MAX_ROWS, Metrics


def limits(claims: Mapping[str, int | float], ratio: float) -> dict[str, int]:
    """Return the most rows that each node counts for, by name, from what each claims; `ratio` = 0 believes everything.

    Of an even number of claims the lower one in the middle is the median, so half of the nodes may lie.
    """
    some = [int(claim) for claim in claims.values() if claim > 0]
    if not ratio or not some:
        return dict.fromkeys(claims, MAX_ROWS)
    middle = statistics.median_low(some)
    return {name: middle if claim > ratio * middle else MAX_ROWS for name, claim in claims.items()}


def counted(metrics: Mapping[str, int | float], limit: int) -> Metrics:
    """Return what a node has measured, with no more rows than it counts for."""
    return {**metrics, "num-examples": min(metrics["num-examples"], limit)}

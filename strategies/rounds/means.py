"""Combine the metrics of many nodes."""

from collections import defaultdict
from statistics import median

from strategies.exchange.types import Metrics


def means(answers: list[Metrics]) -> Metrics:
    """Return the mean of every metric over nodes, weighted by their rows; `num-examples` is the sum."""
    sums: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for metrics in answers:
        for name, value in metrics.items():
            sums[name] += value * metrics.get("num-examples", 1)
            weights[name] += metrics.get("num-examples", 1)
    found: Metrics = {name: sums[name] / weights[name] for name in sums if weights[name]}
    if answers:
        found["num-examples"] = int(sum(metrics.get("num-examples", 0) for metrics in answers))
    return found


def medians(answers: list[Metrics]) -> Metrics:
    """Return the median of every metric over nodes, each counting once; for an even number, the mean of the two in the
    middle."""
    names = {name for metrics in answers for name in metrics} - {"num-examples"}
    return {name: median(metrics[name] for metrics in answers if name in metrics) for name in sorted(names)}

"""What differences between two methods say, one for each seed: the paired t test."""

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05  # a smaller p value separates two methods
AHEAD, BEHIND, EQUAL, ONE_SEED = "ahead", "behind", "not separable", "one seed"


def error_of_mean(values: Sequence[float]) -> float:
    """Return the standard error; not a number for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def chance(differences: Sequence[float]) -> float:
    """Return the two-sided p value of a paired t test: how likely so large a mean difference is between equals.

    Not a number for fewer than two differences.
    """
    from scipy import stats

    if len(differences) < 2:
        return math.nan
    mean, error = statistics.mean(differences), error_of_mean(differences)
    if error == 0.0:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean / error), len(differences) - 1))


def verdict(differences: Sequence[float], lowest: bool) -> str:
    """Return what paired differences of a metric say, at a level of 5 %. `lowest`: less of the metric is better."""
    p = chance(differences)
    if math.isnan(p):
        return ONE_SEED
    if p >= LEVEL:
        return EQUAL
    better = statistics.mean(differences) * (-1 if lowest else 1) > 0
    return AHEAD if better else BEHIND

"""Metrics: what evaluations measure, with the range of their values."""

import math
from dataclasses import dataclass

LARGEST_EXPONENT = 100.0  # nats; a larger loss is cut to this, because its perplexity would overflow
LARGEST_LOSS = 1e6  # nats: guessing gives the logarithm of the number of classes or words, a ruined model thousands


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation measures: its title, the range of its values, and whether lower is better."""

    title: str
    low: float = 0.0
    high: float = 1.0
    lowest: bool = False


LOSS = Metric("loss", 0.0, LARGEST_LOSS, lowest=True)
ACCURACY = Metric("accuracy")
PERPLEXITY = Metric("perplexity", 1.0, math.exp(LARGEST_EXPONENT), lowest=True)

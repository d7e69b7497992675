"""Median: every coordinate moves by the median of what the nodes learned, whatever their rows.

Yin et al., "Byzantine-Robust Distributed Learning", arXiv 1803.01498, Option I of Algorithm 1. Of an even number
of updates the lower of the two middle values counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import FIXED_POINT, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import State, Update
from task.schema import option


@dataclass(frozen=True)
class Median(Strategy):
    """`server_step` times the coordinate-wise median."""

    is_weighted_mean = False
    laws = frozenset({FIXED_POINT, ORDER, WEIGHTS})

    server_step: float = option(1.0, low=0.0)

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        deltas = [update.delta for update in updates]
        return {
            name: self.server_step * torch.stack([delta[name] for delta in deltas]).median(dim=0).values
            for name in state.tensors
        }

"""RoLoRA: odd rounds train and average B, even rounds A.

Chen et al., "Robust Federated Finetuning of Foundation Models via Alternating Minimization of LoRA", arXiv 2409.02346.
All nodes have the same resting factor, so each round's mean of the products is the product of the means: sum_i p_i B_i
A = (sum_i p_i B_i) A, and the same for A. Updates are half as large as FedAvg's. B is zero initially, so it trains
first: with B = 0 the gradient of A vanishes. The head trains in every round.
"""

from dataclasses import dataclass

from strategies.algebra.lowrank import rank_axis
from strategies.exchange.strategy import EQUAL_RANKS, EXACT, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy


@dataclass(frozen=True)
class RoLora(Strategy):
    """FedAvg of one factor at a time."""

    needs_ranks = True
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS, EXACT})

    def trains(self, name: str, round: int) -> bool:
        resting = 0 if round % 2 else 1
        return rank_axis(name) != resting

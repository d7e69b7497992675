"""What rounds of the Gaussian mechanism on a sampled cohort cost, by Rényi differential privacy through dp-accounting.

Mironov, "Rényi Differential Privacy", arXiv 1702.07476; Poisson cohorts by Mironov, Talwar and Zhang, arXiv
1908.10530; cohorts of fixed size by Wang, Balle and Kasiviswanathan, arXiv 1808.00087, Theorem 27. Noise is counted
in clips: its standard deviation on the sum of a cohort's vectors, over the largest norm that one of them may have.

Poisson: neighbours differ by one node that is there or not, so the sum by one clip. Fixed size: the number of nodes
is public and neighbours differ in one node's data, so the sum by two clips; dp-accounting wants the noise over that.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dp_accounting

WHOLE = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)  # orders
ORDERS = (*(tenth / 10 for tenth in range(11, 110)), *WHOLE[9:])  # of 11 and more, whole ones are close enough
PRECISION = 1e-3  # of a calibrated noise
LARGEST = 1e6  # noise that is tried


@dataclass(frozen=True)
class Draw:
    """How a cohort is drawn: each node by itself with probability `rate`, or `size` of `nodes` without replacement."""

    rate: float = 0.0
    nodes: int = 0
    size: int = 0

    @property
    def poisson(self) -> bool:
        """Was every node drawn by itself?"""
        return not self.nodes


def epsilon_of(draws: Mapping[Draw, int], noise: float, delta: float) -> float:
    """The epsilon, at `delta`, of so many rounds of each draw, all Poisson or all of fixed size; infinite without
    noise."""
    draws = {draw: rounds for draw, rounds in draws.items() if rounds and (draw.rate or draw.size)}
    if not draws:
        return 0.0
    if len({draw.poisson for draw in draws}) > 1:
        raise ValueError(
            "rounds with Poisson cohorts and rounds with cohorts of fixed size have no guarantee in common"
        )
    return _epsilon(tuple(sorted(draws.items(), key=repr)), noise, delta) if noise else math.inf


def least_noise(draw: Draw, rounds: int, epsilon: float, delta: float) -> float:
    """The least noise with which `rounds` of a draw cost no more than `epsilon`, to 0.1 %. Raises ValueError where
    an epsilon is too small to be accounted for."""
    low, high = 0.0, 1.0
    while epsilon_of({draw: rounds}, high, delta) > epsilon:
        low, high = high, 2 * high
        if high > LARGEST:
            raise ValueError(f"no noise is enough for epsilon = {epsilon:g} at delta = {delta:g}")
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if epsilon_of({draw: rounds}, middle, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


def gaussian_epsilon(rounds: int, noise: float, delta: float) -> float:
    """The epsilon of so many rounds in which one vector, clipped and noised, is sent by itself; a neighbour sends any
    other. Exact: they are one Gaussian mechanism with 1 / sqrt(rounds) of the noise, over a sensitivity of two clips
    (Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", arXiv 1805.06530, Theorem 8)."""
    import dp_accounting

    if not rounds:
        return 0.0
    return float(dp_accounting.get_epsilon_gaussian(noise / 2 / math.sqrt(rounds), delta)) if noise else math.inf


def least_gaussian_noise(rounds: int, epsilon: float, delta: float) -> float:
    """The noise with which so many of these rounds cost `epsilon`, or a little less."""
    import dp_accounting

    noise = 2 * math.sqrt(rounds) * float(dp_accounting.get_sigma_gaussian(epsilon, delta))
    while gaussian_epsilon(rounds, noise, delta) > epsilon:
        noise *= 1 + PRECISION
    return noise


@lru_cache(maxsize=256)
def _epsilon(draws: tuple[tuple[Draw, int], ...], noise: float, delta: float) -> float:
    import dp_accounting
    from dp_accounting import NeighboringRelation, rdp

    logging.getLogger("absl").setLevel(logging.ERROR)  # it says which orders did not converge; the bound holds without
    poisson = draws[0][0].poisson
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE if poisson else NeighboringRelation.REPLACE_ONE
    slow = any(draw.size < draw.nodes for draw, _ in draws)
    accountant = rdp.RdpAccountant(WHOLE if slow else ORDERS, relation)
    gaussian = dp_accounting.GaussianDpEvent(noise if poisson else noise / 2)
    for draw, rounds in draws:
        accountant.compose(_event(draw, gaussian), rounds)
    return float(accountant.get_epsilon(delta))


def _event(draw: Draw, gaussian: "dp_accounting.GaussianDpEvent") -> "dp_accounting.DpEvent":
    """One round, in dp-accounting's words. Where everybody takes part there is no sampling."""
    import dp_accounting

    if draw.poisson:
        return dp_accounting.PoissonSampledDpEvent(draw.rate, gaussian) if draw.rate < 1 else gaussian
    if draw.size < draw.nodes:
        return dp_accounting.SampledWithoutReplacementDpEvent(draw.nodes, draw.size, gaussian)
    return gaussian

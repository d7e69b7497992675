"""Of every number of an update the median over nodes.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", arXiv
1803.01498, Definition 1 and Algorithm 1, Option I. Fewer than half of the nodes may send anything: every number of the
result still lies between the smallest and the largest of what the others sent. The price is that nodes whose data
differ are not averaged but outvoted.

All nodes count alike, whatever rows they say they have: a weight is a claim, and a node that claims a million rows
would be the median. Updates wait in a file; memory does not grow with their number (`strategies/algebra/robust.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from strategies.algebra.robust import median
from strategies.algebra.tensors import Tensors
from strategies.exchange.order_statistics import combined, misfits
from strategies.exchange.vocabulary import State, Update
from strategies.exchange.wrapper import Wrapper

if TYPE_CHECKING:
    from strategies.exchange.algorithm import Algorithm


@dataclass(frozen=True)
class Median(Wrapper):
    """Has no options."""

    averaged = True

    def problems(self, strategy: "Algorithm", inner: Sequence[Wrapper]) -> list[str]:
        return misfits(self, inner)

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        return combined(median, state, updates)

"""Of every number of an update the mean over nodes, without the largest and the smallest ones.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", arXiv
1803.01498, Definition 2 and Algorithm 1, Option II: beta is `trim`. Up to that share of the nodes may send anything:
every number of the result still lies between the smallest and the largest of what the others sent.

All nodes count alike, whatever rows they say they have: a weight is a claim, and a node that claims a million rows
would be the mean. Updates wait in a file; memory does not grow with their number (`strategies/algebra/robust.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from strategies.algebra.robust import trimmed_mean
from strategies.algebra.tensors import Tensors
from strategies.exchange.order_statistics import combined, misfits
from strategies.exchange.vocabulary import State, Update
from strategies.exchange.wrapper import Wrapper
from task.schema import option

if TYPE_CHECKING:
    from strategies.exchange.algorithm import Algorithm


@dataclass(frozen=True)
class TrimmedMean(Wrapper):
    """`trim` is the share of the nodes that is left out at each end, rounded up."""

    trim: float = option(0.1, low=0.0, high=0.5)

    averaged = True

    def problems(self, strategy: "Algorithm", inner: Sequence[Wrapper]) -> list[str]:
        return misfits(self, inner)

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        return combined(partial(trimmed_mean, share=self.trim), state, updates)

"""FedSVD: only B is trained and sent, and the server gives the product new factors by SVD.

Lee, Park, Lee, Wagner, Seong, Bocklet, Lee, Hwang, "FedSVD: Adaptive Orthogonalization for Private Federated Learning
with LoRA", arXiv 2505.12805 (NeurIPS 2025). Nodes train B and are sent both factors. With p_i = n_i / n and Â the A of
the round:

    B̄ = sum_i p_i B_i,   B̄ Â = U S V^T,   B <- U_r S_r,   Â <- V_r^T

All nodes have the same Â, so the rule is exact, as in FFA-LoRA: sum_i p_i B_i Â = B̄ Â, and the SVD keeps that product,
whose rank is at most r. Unlike there, Â follows what was learned. Its rows are orthonormal after the first SVD, so the
gradient of B is at most the scaling times that of the whole weight.

The SVD reads the mean alone, so a guarantee of privacy for the mean, or for each B_i, holds for its factors too.

Signs: the largest entry of every row of Â is positive. If B̄ is zero, Â stays as it was; if B̄ lacks ranks, rows of the
old Â, made orthogonal to the others, fill the gap. The first Â is drawn from the run's seed and is not orthonormal. The
head is trained and averaged as in FedAvg; the authors' code freezes it as drawn.
"""

from dataclasses import dataclass, replace

from strategies.algebra.lowrank import ProductSum, factor_names, modules, pair, rank_axis
from strategies.algebra.tensors import Tensors, added
from strategies.exchange.strategy import EXACT, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import State
from task.schema import option


@dataclass(frozen=True)
class FedSVD(Strategy):
    """The mean of B, with A adapted by SVD. With `every` = 0 it is FFA-LoRA, whose A never changes."""

    every: int = option(1, low=0, doc="rounds from one SVD to the next; 0: never, which is ffa-lora")

    needs_ranks = True
    additive_across_rounds = False  # the factors are split again
    laws = frozenset({ORDER, WEIGHTS, EXACT})  # the factors turn, even if nobody learned; their product does not

    @property
    def fixed_step(self) -> str:
        return "its factors are split again by SVD"

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        tensors = added(state.tensors, combined)
        if self.every and round % self.every == 0:
            for module in modules(tensors):
                tensors |= _split(tensors, module)
        return replace(state, tensors=tensors)

    def trains(self, name: str, round: int) -> bool:
        return rank_axis(name) != 0


def _split(tensors: Tensors, module: str) -> Tensors:
    """Return new factors of a module with the same product, by SVD; nothing if the product is zero."""
    b, a = pair(tensors, module)
    if not b.any():
        return {}
    new_b, new_a = ProductSum.of(b, a).split(a.shape[0], spare=a)
    return dict(zip(factor_names(module), (new_b.to(b.dtype), new_a.to(a.dtype)), strict=True))

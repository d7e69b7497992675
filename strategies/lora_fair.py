"""LoRA-FAIR: FedAvg of the factors, with a correction of B that brings their product nearer to the mean product.

Bian, Wang, Zhang, Xu, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", arXiv
2411.14961 (ICCV 2025). With A and B the weighted means of the factors and D = sum_i p_i B_i A_i, nodes are sent A and
B + dB. The paper minimises -cos(D, (B + dB) A) + lambda ||dB|| by gradient steps on the server. The cosine does not see
how long a product is, so here the squared distance takes its place, whose minimum has a closed form (ridge regression):

    min over dB of ||D - (B + dB) A||^2 + lambda ||dB||^2:    dB = (D - B A) A^T (A A^T + lambda I)^-1

The product is never farther from D than FedAvg's. dB is zero if all A_i or all B_i are equal, and as lambda grows the
rule becomes FedAvg. With lambda = 0 and all rows of the A_i within those of A it is exact. D is never formed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import ProductSums, factor_names, pair
from strategies.algebra.tensors import Tensors, added
from strategies.exchange.strategy import FIXED_POINT, IDENTITY, ORDER, PRODUCTS, WEIGHTS, Strategy
from strategies.exchange.types import State, Update
from task.config import TaskConfig
from task.schema import option


@dataclass(frozen=True)
class LoraFair(Strategy):
    """FedAvg with LoRA and a corrected B."""

    ridge: float = option(0.01, low=0.0, doc="lambda: weight of the correction's squared length; large: FedAvg")

    needs_ranks = True
    is_weighted_mean = False
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS})

    @property
    def fixed_step(self) -> str:
        return "the correction of B fits the mean of the factors, and no other step"

    def apart(self, config: TaskConfig) -> str:
        return PRODUCTS

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        products = ProductSums()

        def seen() -> Iterator[Update]:
            for update in updates:
                products.add(update.weight, self.trained(state, update))
                yield update

        change = super().combine(state, seen())
        averaged = added(state.tensors, change)
        for module in products.sums:
            b, a = pair(averaged, module)
            residual = products.residual(module, b, a).times(a.T) / products.weight
            name = factor_names(module)[0]
            correction = residual @ _inverse(a.double(), self.ridge)
            change[name] = (change[name].double() + correction).to(change[name].dtype)
        return change


def _inverse(a: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return (A A^T + ridge I)^-1 (rank, rank); the pseudoinverse if there is none."""
    gram = a @ a.T
    inverse: torch.Tensor = torch.linalg.pinv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), hermitian=True)
    return inverse

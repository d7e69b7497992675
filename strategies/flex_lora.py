"""FlexLoRA: the mean of the products, split into new factors by SVD.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources", arXiv
2402.11505 (NeurIPS 2024): DW = sum_i p_i s_i B_i A_i with DW = U S V^T; a node of rank r is sent B = U_r S_r / s and A
= V_r^T, the best approximation of the mean at its rank (Eckart and Young). The scaling s is the same for all ranks
here, so it cancels. Other tensors are averaged as in FedAvg.

The mean has a rank of up to sum_i r_i and is cut to the largest rank that any node trains: the rule is exact only if
that is enough. Every SVD rotates the factors, so with equal ranks zero updates keep the product, not the factors.

With mixed ranks zero updates do not keep the product either: a node of rank r_i sends back r_i of the singular values
that the state has, so the mean multiplies the j-th by c_j = sum_{i: r_i >= j} p_i in every round. Ranks 2, 4, 6 with
p = .2, .3, .5 give 1, 1, .8, .8, .5, .5, and a test asserts it. What only high ranks hold fades unless it is learned
again: `raflora` averages it over its owners instead. HLoRA (Liu et al., arXiv 2503.00813) is this rule as well.

The SVD is taken of the small core between the QR factors of the stacked B_i and A_i; DW itself is never formed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from strategies.algebra.lowrank import ProductSums, factor_names, non_lora
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, difference
from strategies.exchange.strategy import ORDER, PRODUCTS, WEIGHTS, Strategy
from strategies.exchange.types import State, Update
from task.config import TaskConfig


@dataclass(frozen=True)
class FlexLora(Strategy):
    """The mean of products of any ranks; every node gets its best approximation."""

    needs_ranks = True
    heterogeneous_ranks = True
    is_weighted_mean = False
    additive_across_rounds = False  # the factors are split again in every round
    laws = frozenset({ORDER, WEIGHTS})

    @property
    def fixed_step(self) -> str:
        return "its factors are split again in every round"

    def apart(self, config: TaskConfig) -> str:
        return PRODUCTS

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        products = ProductSums()
        rest = WeightedSum(non_lora(state.tensors))
        for update in updates:
            trained = self.trained(state, update)
            rest.add({name: trained[name] for name in rest.sums}, update.weight)
            products.add(update.weight, trained)
        mean = rest.mean()
        for module, product in products.sums.items():
            b_name, a_name = factor_names(module)
            b, a = state.tensors[b_name], state.tensors[a_name]
            new_b, new_a = product.split(a.shape[0], spare=a)
            mean |= {b_name: (new_b / rest.total).to(b.dtype), a_name: new_a.to(a.dtype)}
        return difference(mean, state.tensors)

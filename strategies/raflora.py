"""raFLoRA: FlexLoRA whose slices of rank are averaged over the nodes that own them, so that high ranks do not fade.

Wu, Hu, Min, Wang, "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity", arXiv
2602.13486. Between the sorted distinct ranks of a cohort lie blocks h of slices, and each is weighted over its owners:

    D = sum_h sum_{i: r_i >= h} n_i / (sum_{k: r_k >= h} n_k) B_i[:, h] A_i[h, :]

with n_i the rows of node i, r_i its rank, and "r >= h" for a rank that holds all of block h. D = U S V^T is split, and
a node of rank r is sent B = U_r S_r and A = V_r^T. Slices that no node of the cohort owns keep their product, which the
paper does not treat. Other tensors are averaged as in FedAvg. The scaling of the product is the same for all ranks.

With equal ranks this is FlexLoRA. With mixed ranks FlexLoRA multiplies the j-th singular value by its owners' share in
every round, even if nobody learns anything; here updates of zero keep the product, whatever the ranks. RB-LoRA (Ha, Oh,
Jeon, Findings of EACL 2026), which weights each term of rank one by rows and by the rarity of its rank, gives the same
D. A sum is kept for every slice, because a block is known only after the last update.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from strategies.algebra.lowrank import ProductSum, factor_names, modules, non_lora, owned, pair
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, difference
from strategies.exchange.strategy import ORDER, PRODUCTS, WEIGHTS, Strategy
from strategies.exchange.types import State, Update
from task.config import TaskConfig


@dataclass(frozen=True)
class RaFlora(Strategy):
    """The mean of products over the owners of each slice; every node gets its best approximation."""

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
        products: dict[str, dict[int, ProductSum]] = defaultdict(lambda: defaultdict(ProductSum))  # by module and slice
        rest = WeightedSum(non_lora(state.tensors))
        weights: dict[int, float] = defaultdict(float)  # by rank
        for update in updates:
            trained = self.trained(state, update)
            rest.add({name: trained[name] for name in rest.sums}, update.weight)
            for module in modules(trained):
                b, a = pair(trained, module)
                for k in range(a.shape[0]):
                    products[module][k].add(update.weight, b[:, k : k + 1], a[k : k + 1])
            weights[update.assignment.rank] += update.weight
        owners = owned(weights, state.rank).tolist()
        mean = rest.mean()
        for module, slices in products.items():
            b_name, a_name = factor_names(module)
            b, a = state.tensors[b_name], state.tensors[a_name]
            total = ProductSum.of(b[:, len(slices) :], a[len(slices) :])  # what nobody owns
            for k, product in slices.items():
                total.add_sum(1 / owners[k], product)
            new_b, new_a = total.split(a.shape[0], spare=a)
            mean |= {b_name: new_b.to(b.dtype), a_name: new_a.to(a.dtype)}
        return difference(mean, state.tensors)

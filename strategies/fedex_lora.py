"""FedEx-LoRA: FedAvg of the factors; the residual that it leaves out is added to the base.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language Models",
arXiv 2410.09432 (ACL 2025): A and B are averaged apart, and W_0 <- W_0 + scaling * (sum_i p_i B_i A_i - B A) with the
averages B and A. The effective weights are then exactly the mean of the nodes'. The paper's mean is uniform; here p_i
= n_i / n as everywhere.

The residual has a rank of up to (N + 1) r. It travels as an entry of the journal, in factors by SVD or as one matrix,
whichever is smaller: a node is sent it once and keeps it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from strategies.algebra.lowrank import FLOAT32, ProductSums, pair
from strategies.algebra.tensors import Tensors, added
from strategies.exchange.replay import merge_products
from strategies.exchange.strategy import EXACT, FIXED_POINT, IDENTITY, ORDER, PRODUCTS, WEIGHTS, Strategy
from strategies.exchange.types import Entry, State, Update
from task.config import TaskConfig
from task.models.model import TunedModel

RESIDUAL = "residual "  # prefix of names, where the residual travels with the change of the factors


@dataclass(frozen=True)
class FedExLora(Strategy):
    """FedAvg with LoRA, made exact."""

    needs_ranks = True
    writes_base = True
    is_weighted_mean = False
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EXACT})

    @property
    def fixed_step(self) -> str:
        return "the residual in the base fits the mean of the factors, and no other step"

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
        for module, total in products.sums.items():
            residual = products.residual(module, *pair(averaged, module))
            parts = residual.parts(module, 1 / products.weight, floor=FLOAT32 * total.norm())
            change |= {RESIDUAL + name: part for name, part in parts.items()}
        return change

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        residual = {n.removeprefix(RESIDUAL): t for n, t in combined.items() if n.startswith(RESIDUAL)}
        entries = (Entry(round, 0, residual),) if residual else ()
        return replace(state, tensors=added(state.tensors, combined), journal=state.journal + entries)

    def replay(self, model: TunedModel, entry: Entry) -> None:
        merge_products(model, entry)

"""FFA-LoRA: the factor A stays as it was drawn, and only B is trained and sent.

Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", arXiv 2403.12313 (ICLR 2024). All nodes
have the same A, so the mean of the products is the product of the mean: sum_i p_i B_i A = (sum_i p_i B_i) A. It takes
half the bytes of FedAvg with LoRA, and noise added to B enters the weights linearly. A is drawn from the run's seed
when a model is built and is never sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import rank_axis
from strategies.exchange.strategy import EQUAL_RANKS, EXACT, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from task.models.model import TunedModel


@dataclass(frozen=True)
class FFALora(Strategy):
    """FedAvg of B and the head; A is not exchanged."""

    needs_ranks = True
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS, EXACT})

    def exchanged(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        return {name: tensor for name, tensor in model.trained.items() if rank_axis(name) != 0}

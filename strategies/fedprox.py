"""FedProx: FedAvg whose nodes stay near the model that they were sent.

Li et al., "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127, Algorithm 2: node i
minimises F_i(w) + (mu / 2) ||w - w^t||^2, with w^t the server's tensors and the norm over what trains. At
mu = 0 it is FedAvg.
"""

from dataclasses import dataclass
from functools import partial

from strategies.algebra.tensors import Tensors, proximal
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Metrics
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer


@dataclass(frozen=True)
class FedProx(Strategy):
    """FedProx: `mu` weighs the proximal term; the server's half is FedAvg's."""

    mu: float = option(0.01, low=0.0, doc="weight of the proximal term")

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        return super().train(model, trainer.regularised(partial(proximal, mu=self.mu)), assignment)

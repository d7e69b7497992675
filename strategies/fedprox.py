"""FedProx: FedAvg whose nodes are held near the model that they were sent.

Li et al., "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127, Algorithm 2: node i
minimises F_i(w) + (mu / 2) ||w - w^t||^2, with w^t the server's tensors and the norm over what trains. At
mu = 0 it is FedAvg.
"""

from dataclasses import dataclass

from strategies.algebra.tensors import Tensors, difference, snapshot, squared_distance
from strategies.exchange.contract import Strategy
from strategies.exchange.vocabulary import Metrics, Ticket
from task.model import TunedModel
from task.schema import option
from task.train import Trainer


@dataclass(frozen=True)
class FedProx(Strategy):
    """`mu` weighs the proximal term; the server's half is FedAvg's."""

    mu: float = option(0.01, low=0.0)

    def train(self, model: TunedModel, trainer: Trainer, ticket: Ticket) -> tuple[Tensors, Metrics]:
        live = self.live(model, ticket)
        before = snapshot(live)
        anchor = {name: tensor.detach().clone() for name, tensor in live.items()}
        metrics = trainer.fit(model, live, penalty=lambda: self.mu / 2 * squared_distance(live, anchor))
        return difference(live, before), metrics

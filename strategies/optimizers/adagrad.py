"""FedAdagrad: every number has its own rate, which falls with its past updates.

Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2, with their beta1 = 0 as default:

    m <- beta1 m + (1 - beta1) Delta,   v <- v + Delta^2,   x <- x + eta m / (sqrt(v) + tau)

with m = 0 and v = tau^2 initially. Steps get smaller with every round.

A round in which all nodes answer with zero trains nothing: model and moments do not change. If beta1 is not 0, all of a
tensor (of a rank of a factor) moves by m as soon as one number of it has moved.
"""

from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.server_optimizer import ServerOptimizer
from task.schema import option


@dataclass(frozen=True)
class Adagrad(ServerOptimizer):
    """FedAdagrad: the first moment decays, the second moment is a sum."""

    learning_rate: float = option(0.01, low=0.0, doc="of the server: about how far a number moves in the first round")
    beta1: float = option(0.0, low=0.0, high=0.999, doc="share of the mean of past updates that stays")
    tau: float = option(0.001, low=1e-12, doc="added to the root; updates below it make smaller steps")

    def initial(self) -> dict[str, float]:
        return {"first": 0.0, "second": self.tau**2}

    def step(self, mean: torch.Tensor, moments: Tensors) -> tuple[torch.Tensor, Tensors]:
        first = self.beta1 * moments["first"] + (1 - self.beta1) * mean
        second = moments["second"] + mean.square()
        return self.learning_rate * first / (second.sqrt() + self.tau), {"first": first, "second": second}

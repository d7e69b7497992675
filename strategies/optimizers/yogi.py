"""FedYogi: FedAdam whose second moment grows and falls by at most a share of the newest square.

Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2:

    m <- beta1 m + (1 - beta1) Delta,   v <- v - (1 - beta2) Delta^2 sign(v - Delta^2),
    x <- x + eta m / (sqrt(v) + tau)

with m = 0 and v = tau^2 initially. When updates become small, v falls more slowly than in `adam`, and the steps do not
jump up.

A round in which all nodes answer with zero trains nothing: model and moments do not change. As soon as one number of a
tensor (of a rank of a factor) has moved, all of it moves by m.
"""

from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.server_optimizer import ServerOptimizer
from task.schema import option


@dataclass(frozen=True)
class Yogi(ServerOptimizer):
    """FedYogi: the first moment decays, the second moment changes additively."""

    learning_rate: float = option(0.01, low=0.0, doc="of the server: about how far a number moves in a round")
    beta1: float = option(0.9, low=0.0, high=0.999, doc="share of the mean of past updates that stays")
    beta2: float = option(
        0.99, low=0.0, high=0.9999, doc="1 less the share of a square that the second moment moves by"
    )
    tau: float = option(0.001, low=1e-12, doc="added to the root; updates below it make smaller steps")

    def initial(self) -> dict[str, float]:
        return {"first": 0.0, "second": self.tau**2}

    def step(self, mean: torch.Tensor, moments: Tensors) -> tuple[torch.Tensor, Tensors]:
        first = self.beta1 * moments["first"] + (1 - self.beta1) * mean
        square = mean.square()
        second = moments["second"] - (1 - self.beta2) * square * (moments["second"] - square).sign()
        return self.learning_rate * first / (second.sqrt() + self.tau), {"first": first, "second": second}

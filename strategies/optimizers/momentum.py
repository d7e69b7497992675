"""FedAvgM: mean updates are accumulated, and their sum is the step.

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", arXiv
1909.06335: v <- beta v + Delta, x <- x + eta v. If updates stay the same, the step grows to eta / (1 - beta) times an
update. With beta = 0 it is `sgd`.

A round in which all nodes answer with zero trains nothing, and v does not change. As soon as one number of a tensor (of
a rank of a factor) has moved, all of it moves by v.
"""

from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.server_optimizer import ServerOptimizer
from task.schema import option


@dataclass(frozen=True)
class Momentum(ServerOptimizer):
    """FedAvgM: v <- beta v + Delta, x <- x + eta v."""

    learning_rate: float = option(0.3, low=0.0, doc="factor of what is accumulated; the paper has 1")
    beta: float = option(0.9, low=0.0, high=0.999, doc="share of what was accumulated that stays for the next round")

    def initial(self) -> dict[str, float]:
        return {"velocity": 0.0}

    def step(self, mean: torch.Tensor, moments: Tensors) -> tuple[torch.Tensor, Tensors]:
        velocity = self.beta * moments["velocity"] + mean
        return self.learning_rate * velocity, {"velocity": velocity}

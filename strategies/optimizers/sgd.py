"""SGD on the server: the step is the mean update, times a rate.

At `learning-rate` = 1 the step is the mean itself, to the bit: federated averaging (McMahan et al., arXiv 1602.05629).
Updates of zero leave the model as it is.
"""

from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.server_optimizer import ServerOptimizer
from task.schema import option


@dataclass(frozen=True)
class Sgd(ServerOptimizer):
    """SGD: x <- x + eta Delta."""

    learning_rate: float = option(1.0, low=0.0, doc="factor of the mean update; 1: the mean itself")

    @property
    def identity(self) -> bool:
        return self.learning_rate == 1.0

    def step(self, mean: torch.Tensor, moments: Tensors) -> tuple[torch.Tensor, Tensors]:
        return self.learning_rate * mean, {}

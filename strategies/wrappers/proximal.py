"""FedProx's proximal term round any strategy: nodes are held near the tensors that they were sent.

Li et al., "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127: (mu / 2) ||w - w^t||^2 is added to
every loss, over what trains in the round. Round `fedavg` it is the strategy `fedprox`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.tensors import proximal
from strategies.exchange.wrapper import Wrapper
from task.schema import option


@dataclass(frozen=True)
class Proximal(Wrapper):
    """`mu` weighs the term; updates pass as they are."""

    mu: float = option(0.01, low=0.0, doc="weight of the proximal term")

    def penalty(self, live: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
        return proximal(live, self.mu)

"""FedProx's proximal term for any strategy: nodes stay near the tensors that they were sent.

Li et al., "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127: (mu / 2) ||w - w^t||^2 is added to
every loss, over the tensors that train in the round. With `fedavg` it is the strategy `fedprox`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.tensors import proximal
from strategies.exchange.wrapper import Wrapper
from task.schema import option


@dataclass(frozen=True)
class Proximal(Wrapper):
    """The proximal term with weight `mu`; updates pass unchanged."""

    mu: float = option(0.01, low=0.0, doc="weight of the proximal term")

    def penalty(self, live: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
        return proximal(live, self.mu)

"""A wrapper that sends a lossy code of an update, with error feedback."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from strategies.algebra.feedback import compensated, remember
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Ticket
from strategies.exchange.wrapper import Wrapper
from task.schema import option

if TYPE_CHECKING:
    from strategies.exchange.algorithm import Algorithm


@dataclass(frozen=True)
class Compression(Wrapper):
    """`feedback` adds what a round's code left out to the next round's update: see `strategies.algebra.feedback`.

    The errors stay on the node, as many numbers as its update has. A subclass has `encoded`, `form` and `incoming`.
    """

    feedback: bool = option(True)

    def problems(self, strategy: "Algorithm", inner: Sequence[Wrapper]) -> list[str]:
        if not self.feedback:
            return []
        key = f"{self.name}.feedback"
        before = [wrapper.name for wrapper in inner if not wrapper.cumulative]
        found = [f"{key} = true cannot follow '{name}', which sends other places in every round" for name in before]
        if not strategy.cumulative:
            found.append(f"{key} = true needs updates that add up over rounds; those of '{strategy.name}' do not")
        return [f"{problem}: set {key} = false" for problem in found]

    def encoded(self, wanted: Tensors, like: Mapping[str, torch.Tensor], ticket: Ticket) -> Tensors:
        """The code of `wanted`, for an update of the dtypes of `like`."""
        raise NotImplementedError

    def outgoing(self, update: Tensors, ticket: Ticket, kept: Tensors) -> Tensors:
        wanted = compensated(update, kept if self.feedback else {})
        _check_finite(wanted)
        sent = self.encoded(wanted, update, ticket)
        if self.feedback:
            restored = self.incoming(sent, update)
            _check_finite(restored)
            remember(kept, wanted, restored)
        return sent


def _check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Once kept, a NaN would be in every later update."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise ValueError(f"'{name}' holds NaN or infinity after training: try a smaller learning-rate")

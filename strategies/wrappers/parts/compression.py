"""A wrapper that sends a lossy code of an update, with error feedback."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from strategies.algebra.feedback import compensated, remember
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.types import Assignment
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.schema import option


@dataclass(frozen=True)
class Compression(Wrapper):
    """A lossy code: `feedback` adds what a round's code left out to the next round's update; see
    `strategies.algebra.feedback`.

    The errors stay on the node, as many numbers as its update has. A subclass has `encoded`, `encoded_spec` and
    `decode`.
    """

    encodes = True

    feedback: bool = option(True, doc="add what a message left out to the node's next update")

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence[Wrapper]
    ) -> list[str]:
        if not self.feedback:
            return []
        key = f"{self.name}.feedback"
        before = [wrapper.name for wrapper in inner if not wrapper.additive_across_rounds]
        found = [f"{key} = true cannot follow '{name}', which sends other places in every round" for name in before]
        if not strategy.additive_across_rounds:
            found.append(f"{key} = true needs updates that add up over rounds; the updates of '{strategy.name}' do not")
        return [f"{problem}: set {key} = false" for problem in found]

    def encoded(self, wanted: Tensors, like: Mapping[str, torch.Tensor], assignment: Assignment) -> Tensors:
        """Return the code of `wanted`, for an update of the dtypes of `like`."""
        raise NotImplementedError

    def encode(self, update: Tensors, assignment: Assignment, client_state: Tensors) -> Tensors:
        wanted = compensated(update, client_state if self.feedback else {})
        _check_finite(wanted)
        sent = self.encoded(wanted, update, assignment)
        if self.feedback:
            restored = self.decode(sent, update)
            _check_finite(restored)
            remember(client_state, wanted, restored)
        return sent


def _check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for NaN or infinity: once stored as an error, a NaN would be in every later update."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise ValueError(f"'{name}' holds NaN or infinity after training: try a smaller learning-rate")

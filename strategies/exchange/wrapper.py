"""What goes round every update, whatever the strategy: compression, privacy.

A wrapper is one frozen dataclass in one file of `strategies/wrappers/`, its options made by
`task.schema.option`. It has a half on the node and a half on the server. On the way up the chain is
applied in order; the server undoes it in reverse.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.vocabulary import Ticket


@dataclass(frozen=True)
class Wrapper:
    """The identity; subclasses replace what they need."""

    def penalty(self, live: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor] | None:
        """On the node: what is added to every loss while the tensors `live` train from where they are; or nothing."""
        return None

    def outgoing(self, update: Tensors, ticket: Ticket) -> Tensors:
        """On the node: what is sent instead of `update`."""
        return update

    def incoming(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        """On the server: the update again, in the dtypes of `like`. Undoes `outgoing` as far as it can."""
        return sent

    def combined(self, mean: Tensors, cohort: int) -> Tensors:
        """On the server: the mean of `cohort` updates, before it is applied. Only strategies whose
        combination is a mean allow a wrapper to change this."""
        return mean

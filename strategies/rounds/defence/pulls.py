"""The pull of each node: how much of a round's change it is responsible for. Updates u_i with weights p_i that sum to
one have the mean m, and the pull

    <p_i u_i, m> / ||m||^2,     times the number of nodes,

is 1 on average, and far above 1 for a node that dominates the mean against the others.

Only a few hundred places are compared, drawn anew in every round from the system's secure random source: a node cannot
know at which places to be honest. Nor does an update need more memory than these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from strategies.algebra.tensors import corner
from task.secure_random import system

PLACES = 256  # of an update
FEW = 3  # the least number of updates of which one can stand out


@dataclass
class Pulls:
    """The pulls of one round, computed from its updates."""

    places: dict[str, torch.Tensor] = field(default_factory=dict)  # sampled places by tensor: flat positions
    seen: dict[str, torch.Tensor] = field(default_factory=dict)  # numbers at these places times the weight, by node
    strange: set[str] = field(default_factory=set)  # nodes whose updates cannot be compared

    def see(self, node: str, weight: float, view: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> None:
        """Sample what a node sent. `view` has tensors that are the leading corners of `shapes`, zero elsewhere; it is
        empty if the same place in different nodes' updates does not mean the same."""
        if not view:
            self.strange.add(node)
            return
        if not self.places:
            self._draw({name: shapes.get(name, tensor.shape).numel() for name, tensor in view.items()})
        numbers = [_at(view[name], shapes.get(name, view[name].shape), own) for name, own in self.places.items()]
        self.seen[node] = torch.cat(numbers) * weight

    def read(self) -> dict[str, float | None]:
        """Return each node's pull, 1 on average; None if it is unknown."""
        unknown: dict[str, float | None] = dict.fromkeys([*self.seen, *self.strange])
        if len(self.seen) < FEW or self.strange:
            return unknown
        mean = torch.stack(list(self.seen.values())).double().sum(dim=0)
        square = float(mean @ mean)
        if not square:
            return unknown
        return {node: len(self.seen) * float(own.double() @ mean) / square for node, own in self.seen.items()}

    def _draw(self, sizes: Mapping[str, int]) -> None:
        """Draw places in every tensor in proportion to its size, at least one."""
        total = sum(sizes.values())
        for name, size in sizes.items():
            count = min(size, max(1, PLACES * size // total))
            self.places[name] = torch.tensor(system.sample(range(size), count), dtype=torch.int64)


def _at(tensor: torch.Tensor, shape: torch.Size, places: torch.Tensor) -> torch.Tensor:
    """Return the numbers of a corner of this shape at some places of the whole, float32."""
    if tensor.shape != shape:
        whole = torch.zeros(shape)
        corner(whole, tensor.shape).copy_(tensor)
        tensor = whole
    return tensor.detach().cpu().reshape(-1)[places].float()

"""How much of what a round changed each node is behind: updates u_i of weights p_i that sum to one make the mean m, and

    <p_i u_i, m> / ||m||^2,     times the number of nodes,

is 1 on average, and far above it for who dominates a mean against the others.

A few hundred places, drawn anew in every round from the system's secret randomness, stand for all: a node cannot
know in which to be honest. So an update needs no more memory than what is said of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from strategies.algebra.tensors import corner
from task.secure_random import system

PLACES = 256  # of an update
FEW = 3  # updates of which one can stand out


@dataclass
class Pulls:
    """Sees the updates of one round."""

    places: dict[str, torch.Tensor] = field(default_factory=dict)  # that are looked at, by tensor: flat positions
    seen: dict[str, torch.Tensor] = field(default_factory=dict)  # numbers there times the weight, by node
    strange: set[str] = field(default_factory=set)  # nodes whose updates cannot be compared

    def see(self, node: str, weight: float, view: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> None:
        """Look at what a node sent: tensors that are the leading corners of these shapes, zero elsewhere; or nothing,
        where updates of different nodes have no places in common."""
        if not view:
            self.strange.add(node)
            return
        if not self.places:
            self._draw({name: shapes.get(name, tensor.shape).numel() for name, tensor in view.items()})
        numbers = [_at(view[name], shapes.get(name, view[name].shape), own) for name, own in self.places.items()]
        self.seen[node] = torch.cat(numbers) * weight

    def read(self) -> dict[str, float | None]:
        """Return each node's pull, 1 on average; None where it cannot be told."""
        unknown: dict[str, float | None] = dict.fromkeys([*self.seen, *self.strange])
        if len(self.seen) < FEW or self.strange:
            return unknown
        mean = torch.stack(list(self.seen.values())).double().sum(dim=0)
        square = float(mean @ mean)
        if not square:
            return unknown
        return {node: len(self.seen) * float(own.double() @ mean) / square for node, own in self.seen.items()}

    def _draw(self, sizes: Mapping[str, int]) -> None:
        """Places of every tensor in proportion to its size, one at least."""
        total = sum(sizes.values())
        for name, size in sizes.items():
            count = min(size, max(1, PLACES * size // total))
            self.places[name] = torch.tensor(system.sample(range(size), count), dtype=torch.int64)


def _at(tensor: torch.Tensor, shape: torch.Size, places: torch.Tensor) -> torch.Tensor:
    """The numbers of a corner of this shape at some places of the whole, float32."""
    if tensor.shape != shape:
        whole = torch.zeros(shape)
        corner(whole, tensor.shape).copy_(tensor)
        tensor = whole
    return tensor.detach().cpu().reshape(-1)[places].float()

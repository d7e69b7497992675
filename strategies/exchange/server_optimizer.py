"""Server optimizers: they turn a round's combined update into a step of the model, and keep moments for the next round.

A server optimizer is one frozen dataclass in one file of `strategies/optimizers/`; its options are made by
`task.schema.option`. It sees one tensor at a time, after combination and noise, whatever the strategy. Its moments are
tensors of `State.server`: checkpoints keep them, messages do not.

Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 1 (FedOpt): the mean update takes
the place of a negative gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors, corner
from strategies.exchange.types import RunFailed
from task import extensions

MEASURED = ("running_mean", "running_var")  # torch's names of statistics that a batch norm measures, rather than learns


@dataclass(frozen=True)
class ServerOptimizer:
    """The base class. Subclasses define `step`, and `initial` if they have moments."""

    @property
    def name(self) -> str:
        """Return the key of the optimizer: the name of its file."""
        return extensions.name_of(type(self))

    @property
    def prefix(self) -> str:
        """Return the prefix of its run-config keys."""
        return prefix_of(self.name)

    @property
    def identity(self) -> bool:
        """Return whether the step is the combined update itself, which is valid for every strategy."""
        return False

    def initial(self) -> Mapping[str, float]:
        """Return the moments by name, each with the value that fills it before the first step."""
        return {}

    def step(self, mean: torch.Tensor, moments: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the step of one tensor and its new moments, given its mean update and its moments so far.

        All are float64, of one shape, on the CPU. Numbers at different places must not depend on each other, because
        places may be left out.
        """
        raise NotImplementedError


def prefix_of(name: str) -> str:
    """Return the prefix of an optimizer's run-config keys: `momentum` alone is a key of local training."""
    return f"server-{name}."


def stepped(
    optimizer: ServerOptimizer, tensors: Tensors, server: Tensors, combined: Tensors
) -> tuple[Tensors, Tensors]:
    """Return the change of the state that the optimizer makes of a combined update, in its dtypes, and all moments.

    A part that nobody trained takes no step and keeps its moments: a tensor, or a rank of a factor, whose update is all
    zero, because no node has that rank or because it rests in this round. Integers and the running statistics of a
    batch norm are not parameters and change as combined. Arithmetic is float64, rounded once.

    Raises RunFailed if the update changes a tensor that the state does not have.
    """
    if strange := combined.keys() - tensors.keys():
        raise RunFailed(
            f"server-optimizer = '{optimizer.name}' cannot step along '{min(strange)}', which is not a tensor of the "
            "state: set server-optimizer = 'sgd'; the strategy should declare a `fixed_step`"
        )
    change = dict(combined)
    moments = {name: tensor for name, tensor in server.items() if name.startswith(f"{optimizer.name} ")}
    for name, mean in combined.items():
        trained = _trained(name, mean)
        if not mean.is_floating_point() or name.endswith(MEASURED) or not trained.any():
            continue
        whole = {m: _moment(moments, optimizer, m, name, tensors[name]) for m in optimizer.initial()}
        parts = {m: corner(tensor, mean.shape) for m, tensor in whole.items()}
        step, after = optimizer.step(mean.double(), {m: part.clone() for m, part in parts.items()})
        change[name] = torch.where(trained, step.to(mean.dtype), mean)
        for m, part in parts.items():
            part.copy_(torch.where(trained, after[m], part))
        moments |= {_key(optimizer, m, name): tensor for m, tensor in whole.items()}
    return change, moments


def _key(optimizer: ServerOptimizer, moment: str, name: str) -> str:
    return f"{optimizer.name} {moment} {name}"


def _moment(moments: Tensors, optimizer: ServerOptimizer, moment: str, name: str, like: torch.Tensor) -> torch.Tensor:
    """Return a copy of a moment of a tensor, in its shape, float64."""
    if (known := moments.get(_key(optimizer, moment, name))) is not None:
        return known.clone()
    return torch.full(like.shape, optimizer.initial()[moment], dtype=torch.float64)


def _trained(name: str, mean: torch.Tensor) -> torch.Tensor:
    """Return where an update is not zero: by rank of a factor, otherwise one answer for the whole tensor."""
    moved, axis = mean != 0, rank_axis(name)
    if axis is None:
        return moved.any()
    return moved.any(dim=tuple(dim for dim in range(mean.dim()) if dim != axis), keepdim=True)

"""SLoRA: some rounds of sparse full tuning find where LoRA starts.

Babakniya, Elkordy, Ezzeldin, Liu, Song, El-Khamy, Avestimehr, "SLoRA: Federated Parameter Efficient Fine-Tuning of
Language Models", arXiv 2308.06522. In rounds 1 to R nodes train the weights W of the layers that will have adapters,
but of each layer only the entries of one random mask M of a given density, the same for all nodes. The server takes the
mean. After round R, with D = W^R - W_0, which is zero outside M, and the scaling s,

    D ~ U_r S_r V_r^T,   B = U_r S_r / s,   A = V_r^T   on the base W_0 as it was,

and the other rounds are FedAvg of B and A. What D has beyond rank r is lost: ||D - s B A||^2 = sum_{k > r} S_k^2. Where
D is zero the adapter starts as drawn. With `sparse-rounds` = 0 it is FedAvg.

Only the entries in M travel, ceil(density x outputs x inputs) numbers a layer. M follows from `key`, the layer's name
and its shape. A node's optimizer has these entries alone as its parameters, so weight decay and a limit of the
gradient's norm concern nothing outside M. A mask spreads over all singular values, so a D of low density loses much
when it is cut to rank r; the log of a run names the share of its squares that is kept.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from strategies.algebra.lowrank import factor_names, modules, non_lora, pair
from strategies.algebra.philox import PER_COUNTER, words
from strategies.algebra.tensors import Tensors, difference, snapshot
from strategies.exchange.strategy import EQUAL_RANKS, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Metrics, State
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import option
from task.seeds import derive
from task.training.trainer import Trainer
from task.tunings.parts.principal import principal

LOG = logging.getLogger("flwr")
WAITING = "waiting "  # prefix of names on the server: the adapters' tensors, until they train
BASE = "base "  # likewise: the masked entries as the base has them
SCALING = "scaling"  # likewise: the factor of the adapters' product


@dataclass(frozen=True)
class SLora(Strategy):
    """FedAvg of a random part of the weights, then of adapters that start as its best approximation."""

    sparse_rounds: int = option(3, low=0, doc="rounds that train a random part of the weights, before the adapters")
    density: float = option(0.01, low=1e-6, high=1.0, doc="share of the entries of a layer's weight that they train")
    sparse_rate: float = option(0.0, low=0.0, doc="learning rate of these rounds; 0: learning-rate")
    key: int = option(0, low=0, high=2**32, doc="seed that the part is drawn from")

    needs_ranks = True
    gradients = False  # the gradients of single rows do not reach a part of a weight
    additive_across_rounds = False  # entries of weights give way to factors
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS})

    def problems(self, config: TaskConfig) -> list[str]:
        found = []
        if self.sparse_rounds and config.tuning.starts_from_base:
            found.append("slora finds where adapters start: set lora.init = 'default' or slora.sparse-rounds = 0")
        if 0 < self.sparse_rounds <= config.rounds_of_head:
            found.append(
                f"head-rounds = {config.head_rounds} and head-init = '{config.head_init}' leave none of "
                f"slora.sparse-rounds = {self.sparse_rounds} to the weights: set fewer, or slora.sparse-rounds = 0"
            )
        return found

    @property
    def writes_base(self) -> bool:
        return bool(self.sparse_rounds)

    @property
    def fixed_step(self) -> str:
        return "entries of weights give way to factors" if self.sparse_rounds else ""

    # ------------------------------------------------------------------ the server's half

    def initial(self, model: TunedModel) -> State:
        """Return the masked entries and the head; the adapters wait on the server. Without sparse rounds, the
        adapters."""
        if not self.sparse_rounds:
            return super().initial(model)
        entries = snapshot(self._entries(model))
        waiting = {WAITING + name: tensor for name, tensor in model.trained.items()}
        before = {BASE + name: tensor.clone() for name, tensor in entries.items()}
        scaling = torch.tensor(model.config.tuning.product_scale(), dtype=torch.float64)
        server = snapshot(waiting) | before | {SCALING: scaling}
        return State(entries | snapshot(non_lora(model.trained)), server=server)

    def begin(self, state: State, round: int, rank: int) -> State:
        if round > self.sparse_rounds and SCALING in state.server:
            state = self._handed_over(state)
        return super().begin(state, round, rank)

    def _handed_over(self, state: State) -> State:
        """Return the state with adapters in place of the masked entries."""
        server, entries = state.server, state.tensors
        waiting = {name.removeprefix(WAITING): tensor for name, tensor in server.items() if name.startswith(WAITING)}
        tensors = {name: entries.get(name, tensor) for name, tensor in waiting.items()}
        kept = total = 0.0
        for module in modules(tensors):
            weight, (b, a) = f"{module}.weight", pair(tensors, module)
            change = self._spread(weight, entries[weight].double() - server[BASE + weight].double(), b, a)
            if change.any():
                u, s, vh = principal(change, b.shape[1])
                tensors |= _padded(module, u * s / server[SCALING], vh, b, a)
                kept, total = kept + float(s.square().sum()), total + float(change.square().sum())
        if total:
            said = "the adapters start with %.0f %% of the squares of what the sparse rounds have changed"
            LOG.info(said, 100 * kept / total)
        own = (WAITING, BASE, SCALING)
        rest = {name: tensor for name, tensor in server.items() if not name.startswith(own)}
        return replace(state, tensors=tensors, server=rest)

    def _spread(self, name: str, values: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Return a matrix (outputs x inputs) that has `values` on the mask of a weight and zeros elsewhere."""
        flat = torch.zeros(b.shape[0] * a.shape[1], dtype=values.dtype)
        flat[self._mask(name, flat.numel())] = values
        return flat.view(b.shape[0], a.shape[1])

    # ------------------------------------------------------------------ both halves

    def _mask(self, name: str, size: int) -> torch.Tensor:
        """Return the ascending places of a weight's mask among its outputs x inputs, row by row (count,), int64."""
        return _places(derive(self.key, name), size, math.ceil(self.density * size))

    # ------------------------------------------------------------------ the node's half

    def install(self, model: TunedModel, start: State) -> None:
        entries = {name: tensor for name, tensor in start.tensors.items() if name in model.frozen}
        others = {name: tensor for name, tensor in start.tensors.items() if name not in entries}
        super().install(model, replace(start, tensors=others))
        for name, values in entries.items():
            self._write(model, name, values)

    def live(self, model: TunedModel, assignment: Assignment) -> dict[str, torch.Tensor]:
        """Return what trains; of a weight the masked entries, as a copy."""
        if not self._sparse(assignment):
            return super().live(model, assignment)
        return self._entries(model) | non_lora(model.trained)

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        if not self._sparse(assignment) or trainer.only is not None:
            return super().train(model, trainer, assignment)
        before = snapshot(self.live(model, assignment))
        entries = {name: nn.Parameter(values) for name, values in self._entries(model).items()}
        with self._in_place(model, entries):
            at_rate = trainer.at_rate(self.sparse_rate) if self.sparse_rate else trainer
            metrics = at_rate.fit(model, entries | non_lora(model.trained))
        for name, values in entries.items():
            self._write(model, name, values)
        return difference(self.live(model, assignment), before), metrics

    def _sparse(self, assignment: Assignment) -> bool:
        return 0 < self.sparse_rounds >= assignment.round

    def _entries(self, model: TunedModel) -> Tensors:
        """Return copies of the masked entries of every weight that has an adapter."""
        names = [f"{module}.weight" for module in modules(model.trained)]
        return {name: model.frozen[name].detach().flatten()[self._stored(model, name)] for name in names}

    def _write(self, model: TunedModel, name: str, values: torch.Tensor) -> None:
        weight = model.frozen[name]
        flat = weight.detach().flatten().index_copy(0, self._stored(model, name), values.detach().to(weight))
        weight.data = flat.view(weight.shape)
        model.changed.add(name)

    def _stored(self, model: TunedModel, name: str) -> torch.Tensor:
        """Return the places of a weight's mask in the tensor as the model stores it."""
        weight = model.frozen[name]
        places = self._mask(name, weight.numel())
        if name in model.transposed:
            inputs, outputs = weight.shape
            places = places % inputs * outputs + places // inputs
        return places.to(weight.device)

    @contextmanager
    def _in_place(self, model: TunedModel, entries: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Within this block, compute every weight from the frozen one and its entries."""
        owners = {id(layer._parameters.get("weight")): layer for layer in model.module.modules()}
        with ExitStack() as stack:
            for name, values in entries.items():
                layer: Any = owners[id(model.frozen[name])]
                stack.callback(_in_order, layer, list(layer._parameters))
                parametrize.register_parametrization(layer, "weight", _Entries(self._stored(model, name), values))
                stack.callback(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=False)
            yield


class _Entries(nn.Module):
    """A weight of which some entries are parameters."""

    def __init__(self, places: torch.Tensor, values: nn.Parameter) -> None:
        super().__init__()
        self.places, self.values = places, values

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten().index_copy(0, self.places, self.values).view(weight.shape)


def _in_order(layer: nn.Module, names: list[str]) -> None:
    """Give a layer's parameters the order of `names` again: one that was replaced comes last otherwise."""
    for name in names:
        layer._parameters[name] = layer._parameters.pop(name)


def _padded(module: str, left: torch.Tensor, right: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> Tensors:
    """Return B and A of a module with the ranks of `left` (outputs x k) and `right` (k x inputs) in front. The others
    add nothing: B is zero there, and A is that of `a`."""
    new_b, new_a = torch.zeros_like(b), a.clone()
    new_b[:, : left.shape[1]], new_a[: right.shape[0]] = left, right
    return dict(zip(factor_names(module), (new_b, new_a), strict=True))


def _places(seed: int, size: int, count: int) -> torch.Tensor:
    """Return `count` different places below `size`, ascending (count,), int64. They depend on the seed alone, and are
    the same on every machine."""
    wanted = min(count, size - count)  # of more than half, those that are left out are drawn
    found = np.empty(0, np.int64)
    start = 0
    while len(found) < wanted:
        more = PER_COUNTER * math.ceil((wanted - len(found)) / PER_COUNTER)
        drawn = np.concatenate([found, (words(seed, 0, start, more) % np.uint64(size)).astype(np.int64)])
        found, start = drawn[np.sort(np.unique(drawn, return_index=True)[1])], start + more
    chosen = np.zeros(size, bool)
    chosen[found[:wanted]] = True
    return torch.from_numpy(np.flatnonzero(chosen if wanted == count else ~chosen))

"""Signs: each round moves all weights along one public random sign vector, by a step that the nodes agree on.

A journal strategy at its smallest: no tensor of the model crosses the wire, only one number each way. Node i learns
d_i, the server keeps s_t = mean_i <d_i, z_t> / |z_t|^2, and everybody replays w <- w + s_t z_t in order, from the base.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, difference, snapshot
from strategies.exchange.strategy import FIXED_POINT, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Entry, Metrics, State, Update
from task.models.model import TunedModel
from task.seeds import derive
from task.training.trainer import Trainer

STEP = {"step": torch.zeros(())}


@dataclass(frozen=True)
class Signs(Strategy):
    """One float32 per node and round."""

    needs_in_place = True
    exchanges_tensors = False
    is_weighted_mean = False
    laws = frozenset({FIXED_POINT, ORDER, WEIGHTS})

    def initial(self, model: TunedModel) -> State:
        return State({})

    def expected(self, state: State, assignment: Assignment) -> Tensors:
        return STEP

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        total = WeightedSum(STEP)
        for update in updates:
            total.add(update.delta, update.weight)
        return total.mean()

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        return State({}, (*state.journal, Entry(round, _seed(round), combined)))

    def exchanged(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        return {}

    writes_base = True

    def replay(self, model: TunedModel, entry: Entry) -> None:
        for name, sign in _signs(model, entry.seed):
            model.shift(name, sign * entry.tensors["step"])

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        before = snapshot(model.trained)
        metrics = trainer.fit(model)
        learned = difference(model.trained, before)
        along = sum(float((learned[name] * sign).sum()) for name, sign in _signs(model, _seed(assignment.round)))
        return {"step": torch.tensor(along / sum(t.numel() for t in learned.values()))}, metrics


def _seed(round: int) -> int:
    return derive("signs", round)


def _signs(model: TunedModel, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The sign vector, tensor by tensor, drawn on the CPU so that every device has the same."""
    source = np.random.Generator(np.random.Philox(seed))
    for name, tensor in model.trained.items():
        bits = source.integers(0, 2, size=tuple(tensor.shape), dtype=np.int8)
        yield name, torch.from_numpy(2.0 * bits - 1.0).to(tensor.device, tensor.dtype)

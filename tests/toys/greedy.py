"""Greedy: federated averaging that needs more memory than any machine has, above some rank."""

from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Metrics
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer

IMPOSSIBLE = 2**47  # numbers: more bytes than an address can tell apart


@dataclass(frozen=True)
class Greedy(Strategy):
    """Ranks up to `fits` can be trained; a node of a larger one runs out of memory after it has trained."""

    needs_ranks = True
    heterogeneous_ranks = True
    laws = frozenset()

    fits: int = option(2, low=0)

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        learned = super().train(model, trainer, assignment)
        if assignment.rank > self.fits:
            torch.empty(IMPOSSIBLE)
        return learned

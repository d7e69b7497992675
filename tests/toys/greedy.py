"""Greedy: federated averaging that needs more memory than any machine has, above some rank or number of rows."""

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
    """Ranks up to `fits`, and up to `rows` rows at a time, can be trained; beyond them a node runs out of memory after
    it has trained."""

    needs_ranks = True
    heterogeneous_ranks = True
    laws = frozenset()

    fits: int = option(2, low=0)
    rows: int = option(1000, low=0)

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        learned = super().train(model, trainer, assignment)
        if assignment.rank > self.fits or trainer.config.rows_at_once > self.rows:
            torch.empty(IMPOSSIBLE)
        return learned

"""FedSA-LoRA: A is shared, B stays on the node.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", arXiv 2410.01463 (ICLR 2025): both
factors train on every node, A is averaged, and B never leaves its node. A learns what nodes have in common, B what is
specific to a node. So every node ends with a model of its own, and only nodes can score it (`evaluate = "nodes"`). With
`head` = "private" the head stays on the node too; with "shared" it is averaged like A.

The server's final model is the shared part with an initial B: the start for a node that joins.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors, difference, snapshot
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Metrics
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer


@dataclass(frozen=True)
class FedSALora(Strategy):
    """FedAvg of A."""

    head: str = option(
        "private",
        choices=("private", "shared"),
        doc="does the head stay on the node too (private), or is it averaged (shared)?",
    )

    needs_ranks = True
    personalized = True

    def problems(self, config: TaskConfig) -> list[str]:
        if not config.rounds_of_head or self.head == "shared":
            return []
        return ["head-rounds and head-init need a head that is averaged: set fedsa-lora.head = 'shared'"]

    @property
    def fixed_step(self) -> str:
        return "the tensors that stay on the nodes were trained with the mean, and would not take the step"

    def exchanged(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        return {name: tensor for name, tensor in model.trained.items() if self._shared(name)}

    def private(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        return {name: tensor for name, tensor in model.trained.items() if not self._shared(name)}

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        shared = dict(self.exchanged(model))
        before = snapshot(shared)
        metrics = trainer.fit(model)
        return difference(shared, before), metrics

    def _shared(self, name: str) -> bool:
        axis = rank_axis(name)
        return axis == 0 or (axis is None and self.head == "shared")

"""Differential privacy of rows: every node trains by DP-SGD, so that its update hides whether any one row was present.

Local steps go through Opacus: see `task.training.dp_sgd`. The instructions set the noise. Each node keeps its own
account, which refuses noise that is too small for its budget, and the server keeps one of every node. Neighbours differ
by one row that is present or not. Everything that follows, on the node or the server, is computed from weights that are
private already, so any strategy works that learns from rows by gradients. The number of rows of a node is not hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from strategies.algebra.accountant import Release
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.types import Assignment
from strategies.exchange.wrapper import NODE, Wrapper
from strategies.wrappers.parts.node_accounts import NodeAccounts
from strategies.wrappers.parts.private_wrapper import PrivateWrapper
from task.config import TaskConfig
from task.kinds import registry as kinds
from task.training.batches import steps_of
from task.training.trainer import Trainer

NAME = "example-privacy"


@dataclass(frozen=True)
class ExamplePrivacy(PrivateWrapper):
    """Example privacy: `noise` on the sum of a batch's gradients, in clips; 0: the least noise with which a node can
    take part in all rounds within `epsilon` (0: no budget). `clip` is the largest norm of a row's gradient."""

    privacy = NODE

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence[Wrapper]
    ) -> list[str]:
        found = super().problems(strategy, config, federation, inner)
        if not self.clip:
            return found
        if not strategy.gradients:
            found.append(f"strategy = '{strategy.name}' learns without gradients, which example-privacy would clip")
        if kinds.of(config).per_token:
            found.append(
                f"example-privacy is for losses of single rows: that of task.kind = '{config.task.kind.name}' is a "
                "mean over the tokens of a batch, which rows share"
            )
        if config.model.quantized:
            found.append(
                "example-privacy takes gradients of single rows, which bitsandbytes does not compute: set "
                "model.quantization = 'none'"
            )
        if config.gradient_checkpointing:
            found.append("example-privacy takes gradients row by row, without gradient-checkpointing: set it to false")
        if config.max_grad_norm:
            found.append(
                "max-grad-norm clips whole gradients, example-privacy.clip the gradients of rows: set max-grad-norm = 0"
            )
        if config.model.dtype != "float32":
            found.append(
                f"model.dtype = '{config.model.dtype}' rounds clipped gradients; example-privacy needs 'float32'"
            )
        if config.precision != "model":
            found.append(f"precision = '{config.precision}' rounds gradients of rows; example-privacy needs 'model'")
        return found

    def release(self, config: TaskConfig, rows: int, noise: float) -> tuple[Release, int]:
        """Return what a step on so many rows releases, with `noise` in clips, and the number of steps per message."""
        return Release(noise, min(1.0, config.batch_size / max(rows, 1))), steps_of(config, rows)

    def training(self, trainer: Trainer, assignment: Assignment, client_state: Tensors) -> Trainer:
        if not self.clip:
            return trainer
        from task.training.dp_sgd import PrivateSteps

        release, steps = self.release(trainer.config, len(trainer.rows), self.noise_of(assignment))
        return replace(trainer, private=PrivateSteps(release.noise, self.clip, release.rate, steps))

    def mechanism(self, plan: Plan) -> Mechanism | None:
        return ExampleAccounts(self, plan) if self.clip else None


class ExampleAccounts(NodeAccounts):
    """The server's accounts of nodes that train by DP-SGD."""

    def __init__(self, options: ExamplePrivacy, plan: Plan) -> None:
        super().__init__(NAME, options, plan)
        self.example = options

    def promise(self) -> str:
        options = self.example
        if not options.private:
            return f"none: gradients of rows are clipped to {options.clip:g}, and no noise is added"
        held = f"at most {options.epsilon:g}" if options.epsilon else "without a budget"
        noise = f"noise {options.noise:g} times" if options.noise else "the least noise that this allows each node, and"
        return f"epsilon {held} at delta {options.delta:g} for any row of a node; {noise} a clip of {options.clip:g}"

    def restore_counts(self, memory: Mapping[str, Any]) -> None:
        """Restore counts. Nothing that nodes reported is believed: every node is assumed to have sent a message in
        every round. If the noise was not given, it is unknown."""
        if self.example.noise or not self.example.epsilon:
            self.before = self.plan.done
        else:
            self.unknown = (
                f"example-privacy.epsilon = {self.example.epsilon:g} counts as spent: the checkpoint is of a version "
                "that did not keep the noise that nodes trained with; start a new run"
            )

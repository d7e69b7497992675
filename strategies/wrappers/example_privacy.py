"""Differential privacy of rows: every node trains by DP-SGD, so that what it sends hides whether any one row was there.

Local steps go through Opacus: see `task.private`. Each node keeps its own account, over all its rounds, and answers
with its epsilon; neighbours differ by one row of it. Whatever follows, on the node or the server, is made of weights
that are private already, so any strategy will do that learns from rows by gradients. How many rows a node has is not
hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from strategies.algebra.tensors import Tensors
from strategies.exchange.federation import Federation
from strategies.exchange.mechanism import Mechanism, Plan, scored_by_nodes
from strategies.exchange.vocabulary import Metrics, Ticket
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.schema import option
from task.train import Trainer

if TYPE_CHECKING:
    from strategies.exchange.algorithm import Algorithm


@dataclass(frozen=True)
class ExamplePrivacy(Wrapper):
    """`noise` on the sum of a batch's gradients, in clips; 0: the least with which a node can take part in all rounds
    within `epsilon` (0: no budget). `clip` is the largest norm of a row's gradient."""

    epsilon: float = option(8.0, low=0.0)
    delta: float = option(1e-5, low=1e-12, high=0.5)
    noise: float = option(0.0, low=0.0)
    clip: float = option(1.0, low=0.0)

    @property
    def silent(self) -> bool:
        return bool(self.noise or self.epsilon)

    def problems(self, strategy: "Algorithm", inner: Sequence[Wrapper]) -> list[str]:
        found = []
        if self.silent and not self.clip:
            found.append("example-privacy.clip = 0 does not bound gradients, and noise needs a bound: set it above 0")
        if self.clip and not strategy.gradients:
            found.append(f"strategy = '{strategy.name}' learns without gradients, which example-privacy would clip")
        return found

    def unfit(self, config: TaskConfig, federation: Federation | None) -> list[str]:
        found = scored_by_nodes(config, "example-privacy") if self.silent else []
        if not self.clip:
            return found
        if config.causal:
            found.append(
                "example-privacy is for classifiers: the loss of task.kind = 'causal-lm' is a mean over the "
                "tokens of a batch, which rows share"
            )
        if config.max_grad_norm:
            found.append(
                "max-grad-norm clips whole gradients; example-privacy.clip those of rows: set max-grad-norm = 0"
            )
        if config.model.dtype != "float32":
            found.append(
                f"model.dtype = '{config.model.dtype}' rounds clipped gradients; example-privacy needs 'float32'"
            )
        return found

    def training(self, trainer: Trainer, ticket: Ticket, kept: Tensors) -> Trainer:
        if not self.clip:
            return trainer
        from task.private import PrivateSteps

        steps = PrivateSteps(self.epsilon, self.delta, self.noise, self.clip, ticket.rounds, kept)
        return replace(trainer, private=steps)

    def mechanism(self, plan: Plan) -> Mechanism | None:
        return Reports(self) if self.clip else None


class Reports(Mechanism):
    """What nodes say of their own accounts."""

    def __init__(self, options: ExamplePrivacy) -> None:
        self.options, self.epsilon, self.done = options, 0.0, False

    def close(self, metrics: Sequence[Metrics]) -> None:
        self.epsilon = max(self.epsilon, *(said.get("epsilon", 0.0) for said in metrics), 0.0)
        self.done = bool(metrics) and all(said.get("rounds-left", 1) == 0 for said in metrics)

    def spent(self) -> dict[str, float | None]:
        """Of the node whose account is the highest."""
        return {"epsilon": self.epsilon if self.options.silent else None, "delta": self.options.delta}

    def exhausted(self) -> str:
        return f"example-privacy.epsilon = {self.options.epsilon:g} is spent on every node that answered" * self.done

    def promise(self) -> str:
        options = self.options
        if not options.silent:
            return f"none: gradients of rows are clipped to {options.clip:g}, and no noise is added"
        held = f"at most {options.epsilon:g}" if options.epsilon else "without a budget, as nodes report it,"
        noise = f"noise {options.noise:g} times" if options.noise else "the least noise that this allows each node, and"
        return f"epsilon {held} at delta {options.delta:g} for any row of a node; {noise} a clip of {options.clip:g}"

    def memory(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon}

    def restore(self, memory: Mapping[str, Any]) -> None:
        self.epsilon = memory["epsilon"]

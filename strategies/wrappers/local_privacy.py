"""Local differential privacy of nodes: a node clips its update and adds noise before it leaves, and trusts nobody.

Every message is a Gaussian mechanism by itself, for all data of the node: neighbours differ in anything but the
number of rows. Noise comes from the node's operating system. There is no amplification by sampling, because the
server sees who answers. What a node measures in training stays there. The noise of n nodes shrinks in their mean by
sqrt(n), where the server's own noise (`central-privacy`) would by n: this needs very many nodes, or few numbers that
train.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from strategies.algebra.accountant import gaussian_epsilon, least_gaussian_noise
from strategies.algebra.clipping import clipped
from strategies.algebra.tensors import Tensors
from strategies.exchange.federation import Federation
from strategies.exchange.mechanism import Mechanism, Plan, scored_by_nodes
from strategies.exchange.vocabulary import Profile, Ticket
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.schema import ConfigError, option
from task.secret import normal

if TYPE_CHECKING:
    from strategies.exchange.algorithm import Algorithm

ROUNDS = "rounds"  # in what a node keeps: those it has sent an update in


@dataclass(frozen=True)
class LocalPrivacy(Wrapper):
    """`noise` on an update, in clips; 0: what lets a node take part in all rounds within `epsilon` (0: no budget)."""

    epsilon: float = option(8.0, low=0.0)
    delta: float = option(1e-5, low=1e-12, high=0.5)
    noise: float = option(0.0, low=0.0)
    clip: float = option(1.0, low=0.0)

    averaged = nearest = True

    @property
    def silent(self) -> bool:
        return bool(self.noise or self.epsilon)

    def problems(self, strategy: "Algorithm", inner: Sequence[Wrapper]) -> list[str]:
        found = []
        if self.silent and not self.clip:
            found.append("local-privacy.clip = 0 does not bound updates, and noise needs a bound: set it above 0")
        if self.silent and strategy.personal:
            found.append(f"strategy = '{strategy.name}' is scored by its nodes, which local-privacy does not protect")
        return found

    def unfit(self, config: TaskConfig, federation: Federation | None) -> list[str]:
        found = scored_by_nodes(config, "local-privacy") if self.silent else []
        if self.noise and self.epsilon and (cost := self.cost(1, self.noise)) > self.epsilon:
            found.append(
                f"local-privacy.epsilon = {self.epsilon:g} does not do for one round with local-privacy.noise = "
                f"{self.noise:g}, which costs {cost:.2f}: set noise = 0 for what fits all rounds"
            )
        return found

    def outgoing(self, update: Tensors, ticket: Ticket, kept: Tensors) -> Tensors:
        if not self.clip:
            return update
        noise, done = self.noise_over(ticket.rounds), int(kept.get(ROUNDS, torch.tensor(0))) + 1
        if self.epsilon and (cost := self.cost(done, noise)) > self.epsilon:
            raise ValueError(f"its budget of epsilon {self.epsilon:g} is spent: this round would make it {cost:.2f}")
        if whole := [name for name, tensor in update.items() if not tensor.is_floating_point()]:
            raise ValueError(f"local-privacy cannot clip tensors of whole numbers, such as '{whole[0]}'")
        kept[ROUNDS] = torch.tensor(done)
        sent = clipped(update, self.clip)
        if not noise:
            return sent
        return {n: (t.double() + normal(t.shape, noise * self.clip).to(t.device)).to(t.dtype) for n, t in sent.items()}

    def mechanism(self, plan: Plan) -> Mechanism | None:
        return LocalAccount(self, plan) if self.clip else None

    def noise_over(self, rounds: int) -> float:
        """The noise that was asked for, or what the budget allows over so many rounds."""
        return self.noise or (_calibrated(rounds, self.epsilon, self.delta) if self.epsilon else 0.0)

    def cost(self, rounds: int, noise: float) -> float:
        """The epsilon of a node that has sent an update in so many rounds."""
        return gaussian_epsilon(rounds, noise, self.delta)


class LocalAccount(Mechanism):
    """The server's count of the rounds that each node was asked in; nothing of the nodes' is needed for it."""

    def __init__(self, options: LocalPrivacy, plan: Plan) -> None:
        self.options, self.plan = options, plan
        self.noise = options.noise_over(plan.rounds)
        self.asked: Counter[str] = Counter()

    def start(self, state: Mapping[str, torch.Tensor]) -> None:
        whole = sorted(name for name, tensor in state.items() if not tensor.is_floating_point())
        if whole:
            raise ConfigError([f"local-privacy cannot clip tensors of whole numbers, such as '{whole[0]}'"])

    def spend(self, present: Sequence[Profile], cohort: Sequence[Profile]) -> None:
        self.asked.update(profile.name for profile in cohort)

    def spent(self) -> dict[str, float | None]:
        """Of the node that was asked most often."""
        cost = self.options.cost(self._most, self.noise)
        return {"epsilon": cost if math.isfinite(cost) else None, "delta": self.options.delta}

    def exhausted(self) -> str:
        budget, cost = self.options.epsilon, self.options.cost(self._most + 1, self.noise)
        return f"local-privacy.epsilon = {budget:g} of a node is spent" if 0 < budget < cost else ""

    def promise(self) -> str:
        if not self.noise:
            return f"none: nodes clip their updates to {self.options.clip:g} and add no noise"
        cost = self.options.cost(self.plan.rounds, self.noise)
        held = min(cost, self.options.epsilon or math.inf)
        return (
            f"epsilon {held:.2f} at delta {self.options.delta:g} for all data of a node that takes part in all "
            f"rounds its budget allows; noise {self.noise:.3f} times the clip of {self.options.clip:g} on every update"
        )

    def memory(self) -> dict[str, Any]:
        return {"noise": self.noise, "asked": dict(self.asked)}

    def restore(self, memory: Mapping[str, Any]) -> None:
        self.noise, self.asked = memory["noise"], Counter(memory["asked"])

    @property
    def _most(self) -> int:
        return max(self.asked.values(), default=0)


@lru_cache(maxsize=64)
def _calibrated(rounds: int, epsilon: float, delta: float) -> float:
    return least_gaussian_noise(rounds, epsilon, delta)

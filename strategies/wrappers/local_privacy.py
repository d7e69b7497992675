"""Local differential privacy of nodes: a node clips its update and adds noise before sending it, and trusts nobody.

Every message is a Gaussian mechanism by itself, for all data of the node: neighbours differ in anything but the number
of rows, and so by two clips. Noise comes from the node's operating system. The instructions set its size, and the
node's own account refuses noise that is too small for the budget. There is no amplification by sampling, because the
server sees who answers. Training metrics stay on the node. The noise of n nodes shrinks in their mean by sqrt(n),
whereas the server's own noise (`central-privacy`) would shrink by n: this needs very many nodes, or few trained
numbers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from strategies.algebra.accountant import History, Release, epsilon_of, least_noise
from strategies.algebra.clipping import clipped
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.types import Assignment
from strategies.exchange.wrapper import NODE, Wrapper
from strategies.wrappers.parts.node_accounts import Account, NodeAccounts
from strategies.wrappers.parts.private_wrapper import PrivateWrapper
from task.config import TaskConfig
from task.schema import ConfigError
from task.secure_random import normal

NAME = "local-privacy"
CLIPS = 2  # distance of neighbours
ROUNDS = "rounds"  # key of a node's memory before it had an account: the rounds that it had sent an update in


@dataclass(frozen=True)
class LocalPrivacy(PrivateWrapper):
    """Local privacy: `noise` on an update, in clips; 0: the noise that lets a node take part in all rounds within
    `epsilon` (0: no budget)."""

    privacy = NODE
    encodes = needs_weighted_mean = must_be_first = True

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence[Wrapper]
    ) -> list[str]:
        found = super().problems(strategy, config, federation, inner)
        if self.private and strategy.personalized:
            found.append(f"strategy = '{strategy.name}' is scored by its nodes, which local-privacy does not protect")
        if self.noise and self.epsilon and (cost := self.cost(1, self.noise)) > self.epsilon:
            found.append(
                f"local-privacy.epsilon = {self.epsilon:g} is not enough for one round with local-privacy.noise = "
                f"{self.noise:g}, which costs {cost:.2f}: set noise = 0 for what fits all rounds"
            )
        return found

    def release(self, config: TaskConfig, rows: int, noise: float) -> tuple[Release, int]:
        """Return what a message releases, with `noise` in clips, and how often."""
        return Release(noise / CLIPS), 1

    def encode(self, update: Tensors, assignment: Assignment, client_state: Tensors) -> Tensors:
        if not self.clip:
            return update
        noise = self.noise_of(assignment)
        if whole := [name for name, tensor in update.items() if not tensor.is_floating_point()]:
            raise ValueError(f"local-privacy cannot clip tensors of whole numbers, such as '{whole[0]}'")
        sent = clipped(update, self.clip)
        if not noise:
            return sent
        return {n: (t.double() + normal(t.shape, noise * self.clip).to(t.device)).to(t.dtype) for n, t in sent.items()}

    def mechanism(self, plan: Plan) -> Mechanism | None:
        return LocalAccounts(self, plan) if self.clip else None

    def cost(self, rounds: int, noise: float) -> float:
        """Return the epsilon of a node that has sent an update in so many rounds."""
        return epsilon_of({Release(noise / CLIPS): rounds}, self.delta)


class LocalAccounts(NodeAccounts):
    """The server's accounts of nodes that add noise to their updates."""

    def __init__(self, options: LocalPrivacy, plan: Plan) -> None:
        super().__init__(NAME, options, plan)
        self.local = options

    def start(self, state: Mapping[str, torch.Tensor]) -> None:
        whole = sorted(name for name, tensor in state.items() if not tensor.is_floating_point())
        if whole:
            raise ConfigError([f"local-privacy cannot clip tensors of whole numbers, such as '{whole[0]}'"])

    def promise(self) -> str:
        options, rounds = self.local, self.plan.rounds
        if not options.private:
            return f"none: nodes clip their updates to {options.clip:g} and add no noise"
        noise = options.noise or CLIPS * least_noise(Release(0.0), rounds, options.epsilon, options.delta)
        held = min(options.cost(rounds, noise), options.epsilon or float("inf"))
        return (
            f"epsilon {held:.2f} at delta {options.delta:g} for all data of a node that takes part in all "
            f"rounds its budget allows; noise {noise:.3f} times the clip of {options.clip:g} on every update"
        )

    def restore_counts(self, memory: Mapping[str, Any]) -> None:
        """Restore rounds by node, all with one noise."""
        release, _ = self.local.release(self.plan.config, 1, memory["noise"])
        for node, rounds in Counter(memory["asked"]).items():
            self.accounts[node] = Account(History({release: rounds}), release, 1)

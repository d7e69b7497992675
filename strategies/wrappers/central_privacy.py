"""Central differential privacy of nodes: every update is clipped, and the server adds noise to their mean.

McMahan et al., "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963, Algorithm 1 (flat
clipping, fixed denominator q W with all w_k = 1). The clip that follows a quantile of the norms is from Andrew et al.,
"Differentially Private Learning with Adaptive Clipping", arXiv 1905.03871, Algorithm 1, which charges the counted bits
to the noise.

It protects all data of one node, in all states that the run releases. The server is trusted, because it sees the
updates. It clips them itself, after all other wrappers are undone, so that nothing that a node does, or keeps for a
later round, moves a sum by more than the clip. Nodes count alike, however many rows they have, and the sum is divided
by the expected size of the cohort, whoever answers. Noise and cohorts are drawn from the operating system's secure
random source, because sampling protects nobody from someone who knows the cohort: such a run cannot be repeated.

Poisson cohorts: neighbours differ by one node that is present or not. Fixed size: the number of nodes is public, and
neighbours differ in the data of one node, which moves a sum by two clips and needs about 2.8 times the noise.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from strategies.algebra.accountant import (
    BudgetSpent,
    History,
    Release,
    accountant_of,
    epsilon_of,
    fitting_noise,
    read,
    written,
)
from strategies.algebra.clipping import clipped
from strategies.algebra.tensors import Tensors, corner
from strategies.exchange import cohort
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.types import Profile, Update
from strategies.exchange.wrapper import SERVER, Wrapper
from strategies.wrappers.parts.private_wrapper import PrivateWrapper
from task.config import TaskConfig
from task.schema import ConfigError, option
from task.secure_random import normal, system
from task.seeds import derive

COUNT_SHARE = 1 / 20  # of a cohort: the noise on the number of updates within the clip (Andrew et al., section 3.1)


@dataclass(frozen=True)
class CentralPrivacy(PrivateWrapper):
    """Central privacy: `noise` on a sum, in clips; 0: the least noise for which all rounds fit into `epsilon` (0: no
    budget).

    With `quantile` the clip moves to this quantile of the updates' norms, at the speed `clip_rate`.
    """

    quantile: float = option(
        0.0, low=0.0, high=1.0, doc="let the clip follow this quantile of the updates' norms; 0: it stays"
    )
    clip_rate: float = option(0.2, low=0.0, doc="how fast it follows")
    sampling: str = option(
        "poisson",
        choices=("poisson", "fixed"),
        doc="each node is drawn by itself with fraction-train (poisson), or a fixed number of them (fixed)",
    )

    privacy = SERVER
    needs_weighted_mean = must_be_first = True

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence[Wrapper]
    ) -> list[str]:
        found = super().problems(strategy, config, federation, inner)
        if self.quantile and not self.clip:
            found.append("central-privacy.clip = 0 bounds nothing, and a quantile needs a bound: set it above 0")
        if self.private and strategy.personalized:
            found.append(
                f"strategy = '{strategy.name}' leaves tensors on the nodes, which central-privacy does not protect"
            )
        if federation and self.clip and self.sampling == "poisson" and federation.min_train_nodes > 1:
            found.append(
                f"min-train-nodes = {federation.min_train_nodes} would change who is drawn; Poisson cohorts "
                "may be of any size: set min-train-nodes = 1, or central-privacy.sampling = 'fixed'"
            )
        if self.noise and self.epsilon and federation and self.sampling == "poisson":
            found += self.unaffordable(Release(self.noise, federation.fraction_train))
        return found

    def unaffordable(self, release: Release) -> list[str]:
        """Return the problem of a budget that is too small for a single round."""
        if not self.epsilon or (cost := epsilon_of({release: 1}, self.delta)) <= self.epsilon:
            return []
        return [
            f"central-privacy.epsilon = {self.epsilon:g} is not enough for one round with central-privacy.noise = "
            f"{self.noise:g}, which costs {cost:.2f}: set noise = 0 for the least that fits all rounds"
        ]

    def mechanism(self, plan: Plan) -> Mechanism | None:
        return CentralMechanism(self, plan) if self.clip or self.private else None


class CentralMechanism(Mechanism):
    """The clip, the noise and the account of one run."""

    def __init__(self, options: CentralPrivacy, plan: Plan) -> None:
        """Plan the run. Raises ConfigError if the budget is too small for one round."""
        self.options, self.plan = options, plan
        self.hides_metrics = self.steadfast = options.private
        self.poisson = options.sampling == "poisson"
        size = cohort.size(plan.nodes, plan.fraction, plan.minimum)
        self.drawn = (plan.nodes, size)  # for cohorts of fixed size: the number of nodes, and of drawn nodes
        self.expected = plan.fraction * plan.nodes if self.poisson else float(size)
        self.clip = options.clip
        self.history = History()
        self.noise = options.noise  # in clips
        self._within = 0.0  # of the round in progress: updates within the clip, each less a half
        if options.noise and (problems := options.unaffordable(self._release())):
            raise ConfigError(problems)
        try:
            self._calibrate()
        except BudgetSpent as error:
            raise ConfigError([f"central-privacy: {error}"]) from error

    def start(self, state: Mapping[str, torch.Tensor]) -> None:
        whole = sorted(name for name, tensor in state.items() if not tensor.is_floating_point())
        if whole:
            raise ConfigError([f"central-privacy cannot clip tensors of whole numbers, such as '{whole[0]}'"])

    # ------------------------------------------------------------------ a round

    def cohort(self, present: Sequence[Profile], round: int) -> list[Profile]:
        repeatable = random.Random(derive(self.plan.seed, "cohort", "central-privacy", round))
        source = system if self.options.private else repeatable
        if self.poisson:
            return cohort.poisson(present, self.plan.fraction, source)
        return cohort.sample(present, cohort.size(len(present), self.plan.fraction, self.plan.minimum), source)

    def announced(self, drawn: int) -> int:
        return int(self.expected) if self.poisson else drawn

    def spend(self, present: Sequence[Profile], cohort: Sequence[Profile], round: int) -> None:
        if not self.poisson:
            self.drawn, self.expected = (len(present), len(cohort)), float(len(cohort))
        self.history[self._release()] += 1
        self._within = 0.0

    def admitted(self, update: Update) -> Update:
        delta = clipped(update.delta, self.clip)
        self._within += 0.5 if delta is update.delta else -0.5
        return Update(update.node, update.assignment, delta, 1.0)

    def combined(self, mean: Tensors, good: int, like: Mapping[str, torch.Tensor]) -> Tensors:
        count, noise = self._noises()
        std = noise * self.clip / self.expected
        combined = dict(mean)
        for name, tensor in like.items():
            share = good / self.expected
            total = combined[name].double() * share if name in mean else torch.zeros(tensor.shape, dtype=torch.float64)
            if std:
                corner(total, tensor.shape).add_(normal(tensor.shape, std))
            combined[name] = total.to(tensor.dtype)
        if self.options.quantile:
            within = (self._within + float(normal((), count))) / self.expected + 0.5
            self.clip *= math.exp(-self.options.clip_rate * (within - self.options.quantile))
        return combined

    # ------------------------------------------------------------------ the account

    def spent(self) -> dict[str, float | str | None]:
        cost, delta = epsilon_of(self.history, self.options.delta), self.options.delta
        return {
            "epsilon": cost if math.isfinite(cost) else None,
            "delta": delta,
            "accountant": accountant_of(self.history, delta),
            "clip": self.clip,
        }

    def exhausted(self) -> str:
        cost = epsilon_of(self.history + History({self._release(): 1}), self.options.delta)
        if not self.options.epsilon or cost <= self.options.epsilon:
            return ""
        return f"central-privacy.epsilon = {self.options.epsilon:g} is spent: another round would make it {cost:.2f}"

    def promise(self) -> str:
        how = "each drawn by itself" if self.poisson else "a fixed number"
        who = f"{'about ' if self.poisson else ''}{self.expected:g} of {self.plan.nodes} nodes a round, {how}"
        if not self.noise:
            return f"none: updates are clipped to {self.clip:g}, and no noise is added; {who}"
        left = range(1, self.plan.rounds - self.plan.done + 1)
        more = bisect_right(left, self.options.epsilon or math.inf, key=self._cost_after)
        rounds = self.plan.done + more
        ends = f", of {self.plan.rounds}: there the budget ends the run" if rounds < self.plan.rounds else ""
        return (
            f"epsilon {self._cost_after(more):.2f} at delta {self.options.delta:g} for all data of a node "
            f"after {rounds} rounds{ends}; noise {self.noise:.3f} times the clip of {self.clip:g}; {who}"
            f"{self._warning()}"
        )

    def _warning(self) -> str:
        """Return a warning if delta is too large: a mechanism that reveals one random node has a delta of 1/N, so
        nothing above 1/N protects anybody."""
        loose = self.options.delta * self.plan.nodes > 1
        return f". Weak: a delta above 1/{self.plan.nodes} allows that one of the nodes is exposed" if loose else ""

    def memory(self) -> dict[str, Any]:
        return {"clip": self.clip, "noise": self.noise, "expected": self.expected, "history": written(self.history)}

    def restore(self, memory: Mapping[str, Any]) -> None:
        self.clip, self.noise, self.expected = memory["clip"], memory["noise"], memory["expected"]
        if "history" in memory:
            self.history = read(memory["history"])
        else:  # of a version that counted rounds, all with one noise
            self.history = History()
            for rate, nodes, size, rounds in memory["draws"]:
                self.history[Release(self._multiplier, rate or 1.0, nodes, size)] += rounds
        try:
            self._calibrate()
        except BudgetSpent:
            self.noise = memory["noise"]  # `exhausted` needs it to report the cost

    def _cost_after(self, rounds: int) -> float:
        """Return the epsilon after this many more rounds."""
        return epsilon_of(self.history + History({self._release(): rounds}), self.options.delta)

    def _release(self) -> Release:
        """Return what a round releases."""
        if self.poisson:
            return Release(self._multiplier, self.plan.fraction)
        return Release(self._multiplier, nodes=self.drawn[0], size=self.drawn[1])

    @property
    def _clips(self) -> int:
        """Return the distance of neighbours in a sum, in clips: one more node, or the data of another."""
        return 1 if self.poisson else 2

    @property
    def _multiplier(self) -> float:
        return self.noise / self._clips

    def _calibrate(self) -> None:
        """Find the noise for the remaining rounds, if it is not given. Raises BudgetSpent."""
        options, left = self.options, self.plan.rounds - self.plan.done
        if options.epsilon and not options.noise and left > 0:
            noise = fitting_noise(self._release(), left, options.epsilon, options.delta, self.history)
            self.noise = noise * self._clips

    def _noises(self) -> tuple[float, float]:
        """Return the standard deviations of the noise on the count, and on the sum in clips. Together they cost what
        `noise` costs on the sum alone: Andrew et al., Theorem 1. Each bit, less a half, moves the count by a half."""
        if not self.options.quantile or not self.noise:
            return 0.0, self.noise
        count = max(COUNT_SHARE * self.expected, self.noise)
        return count, (self.noise**-2 - (2 * count) ** -2) ** -0.5

"""What guards or counts privacy on the server during one run: a wrapper makes it, the round loop asks it.

All that changes is in `memory`, which JSON can hold, so that a run that goes on elsewhere goes on with what is spent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from strategies.algebra.accountant import Release
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Profile, Update
from task.config import TaskConfig


@dataclass(frozen=True)
class Plan:
    """What a run intends, as far as privacy depends on it."""

    rounds: int
    nodes: int  # that take part at its start; where nobody has been asked yet, those that are expected
    fraction: float  # of them that train in a round
    minimum: int = 1  # nodes of a cohort that is drawn in the usual way
    seed: int = 0
    done: int = 0  # rounds that were over when this process began
    config: TaskConfig = TaskConfig()  # by which nodes train


@dataclass(frozen=True)
class Payment:
    """What a node's message costs the rows behind it, and the budget that its run has for them (epsilon 0: none)."""

    wrapper: str
    release: Release
    times: int
    epsilon: float
    delta: float


def scored_by_nodes(config: TaskConfig, wrapper: str) -> list[str]:
    """What to say where nodes would report scores that no privacy covers."""
    if config.evaluate == "server":
        return []
    what = f"evaluate = '{config.evaluate}' reports scores of the nodes' own rows, without noise"
    return [f"{what}: {wrapper} needs evaluate = 'server'"]


class Mechanism:
    """No privacy; subclasses replace what they need."""

    hides_metrics = False  # must what nodes say of their training stay out of reports?
    poisson = False  # is every node drawn by itself, so that a cohort may be empty?
    steadfast = False  # does every round change the state by its noise, whoever answers?
    ahead = False  # does a round cost when nodes are asked, rather than when its state is known?

    def start(self, state: Mapping[str, torch.Tensor]) -> None:
        """Before round 1, with the tensors of the state. Raises ConfigError where they cannot be protected."""

    def cohort(self, present: Sequence[Profile], round: int) -> list[Profile] | None:
        """Who trains in this round; None: whoever is drawn in the usual way."""
        return None

    def announced(self, drawn: int) -> int:
        """How many nodes a ticket says take part, of a cohort of `drawn`: a number that betrays nobody's presence."""
        return drawn

    def able(self, present: Sequence[Profile], round: int) -> Sequence[Profile]:
        """Those whose budget does for this round."""
        return present

    def spend(self, present: Sequence[Profile], cohort: Sequence[Profile], round: int) -> None:
        """A round begins with this cohort: from now on it has cost what it costs, whatever comes of it."""

    def ordered(self, node: str) -> float:
        """The noise that a node of the cohort adds by itself, in clips; 0: none, or what the wrapper's options say."""
        return 0.0

    def admitted(self, update: Update) -> Update:
        """An update, as it goes into the mean."""
        return update

    def combined(self, mean: Tensors, good: int, like: Mapping[str, torch.Tensor]) -> Tensors:
        """The change of the state, from the mean of `good` updates like `like`; there is no mean of none."""
        return mean

    def spent(self) -> dict[str, float | str | None]:
        """`epsilon` and `delta` of the run so far, for its report, and by which `accountant`; epsilon None: there is no
        bound."""
        return {}

    def exhausted(self) -> str:
        """Why no further round may be held, if so."""
        return ""

    def promise(self) -> str:
        """What privacy the whole plan gives, in words."""
        return ""

    def memory(self) -> dict[str, Any]:
        """What changes from round to round."""
        return {}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Go on from such a memory."""

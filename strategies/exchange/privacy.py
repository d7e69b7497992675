"""The server's side of privacy during one run: a wrapper makes a mechanism, and the round loop asks it.

Everything that changes is in `memory`, which is plain JSON, so that a resumed run continues with the budget that is
already spent.
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
    """The plan of a run, as far as privacy depends on it."""

    rounds: int
    nodes: int  # that take part at the start; before any was asked, the number that is expected
    fraction: float  # of them that train in a round
    minimum: int = 1  # nodes of a cohort that is drawn in the default way
    seed: int = 0
    done: int = 0  # rounds that were finished when this process began
    config: TaskConfig = TaskConfig()  # that nodes train with


@dataclass(frozen=True)
class Payment:
    """What a node's message costs the rows it was computed from, and the run's budget for them (epsilon 0: no
    budget)."""

    wrapper: str
    release: Release
    times: int
    epsilon: float
    delta: float


def scored_by_nodes(config: TaskConfig, wrapper: str) -> list[str]:
    """Return the problem with scores that nodes would report without privacy, if they would."""
    if config.evaluate == "server":
        return []
    what = f"evaluate = '{config.evaluate}' reports scores of the nodes' own rows, without noise"
    return [f"{what}: {wrapper} needs evaluate = 'server'"]


class Mechanism:
    """No privacy; subclasses override what they need."""

    hides_metrics = False  # whether metrics of training must stay out of reports
    poisson = False  # whether every node is drawn independently, so that a cohort may be empty
    steadfast = False  # whether every round changes the state by its noise, whoever answers
    ahead = False  # whether a round costs privacy when nodes are asked, rather than when its state is known

    def start(self, state: Mapping[str, torch.Tensor]) -> None:
        """Prepare for round 1, given the tensors of the state. Raises ConfigError if they cannot be protected."""

    def cohort(self, present: Sequence[Profile], round: int) -> list[Profile] | None:
        """Return the nodes that train in this round; None: draw them in the default way."""
        return None

    def announced(self, drawn: int) -> int:
        """Return the cohort size that an assignment states, given `drawn` nodes: a number that does not reveal who is
        present."""
        return drawn

    def able(self, present: Sequence[Profile], round: int) -> Sequence[Profile]:
        """Return the nodes whose budget is enough for this round."""
        return present

    def spend(self, present: Sequence[Profile], cohort: Sequence[Profile], round: int) -> None:
        """Charge a round to this cohort. The cost stands even if the round fails."""

    def ordered(self, node: str) -> float:
        """Return the noise that a node of the cohort adds itself, in clips; 0: none, or the wrapper's own option."""
        return 0.0

    def admitted(self, update: Update) -> Update:
        """Return an update as it enters the mean."""
        return update

    def combined(self, mean: Tensors, good: int, like: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the change of the state, given the mean of `good` updates like `like`; without good updates there is
        no mean."""
        return mean

    def spent(self) -> dict[str, float | str | None]:
        """Return `epsilon` and `delta` of the run so far, for its report, and the `accountant` used; epsilon None: no
        bound."""
        return {}

    def exhausted(self) -> str:
        """Return why no further round may run; empty if one may."""
        return ""

    def promise(self) -> str:
        """Return the privacy guarantee of the whole plan, in words."""
        return ""

    def memory(self) -> dict[str, Any]:
        """Return everything that changes from round to round."""
        return {}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Restore what `memory` returned."""

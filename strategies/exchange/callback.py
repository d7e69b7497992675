"""Callbacks: observers of a run, and the reports that they get.

Callbacks are passed to a run in `Federation.callbacks` and called in that order. The results folder, the progress
display, early stopping and the trackers are callbacks; the round loop knows none of them by name.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from strategies.exchange.types import Metrics, State
from task.config import TaskConfig
from task.schema import Flat


@dataclass
class NodeReport:
    """What one node did in one round: trained, or evaluated."""

    node: str
    rank: int
    bytes_down: int = 0
    bytes_up: int = 0
    journal: int = 0  # entries that it was sent; -1: the weights themselves, which took fewer bytes
    refused: str = ""  # the reason, if its reply did not count
    metrics: Metrics = field(default_factory=dict)

    @property
    def catches_up(self) -> bool:
        """Return whether the node was away, or is new."""
        return self.journal > 1 or self.journal < 0


@dataclass
class RoundReport:
    """What happened in one round; round 0 is the start."""

    number: int
    nodes: list[NodeReport] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)  # nodes that were not asked, because they had not answered
    connected: dict[str, int] | None = None  # Flower's ids of connected nodes, by name; None: as before
    seconds: float = 0.0
    failed: str = ""  # the reason, if the state did not change
    stopped: str = ""  # the reason, if no further round may follow; a callback may set it
    rolled_back: str = ""  # the reason and the way, if the run went back to an earlier state: see collapse.py
    privacy: dict[str, float | str | None] = field(default_factory=dict)  # spent so far (`Mechanism.spent`)
    train: Metrics = field(default_factory=dict)  # means over nodes, weighted by rows
    aggregation_error: dict[str, float] = field(default_factory=dict)  # see aggregation_error.py; overall and by module
    evaluations: list[NodeReport] = field(default_factory=list)  # of nodes that were asked for scores
    evaluated_by_nodes: Metrics = field(default_factory=dict)  # their mean, weighted by rows
    medians_of_nodes: Metrics = field(default_factory=dict)  # of the nodes' metrics, each node counting once
    evaluated_by_server: Metrics = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_base: int = 0  # offers of the base, counted apart from training
    parameters_up: int = 0  # numbers that were sent, besides the bytes
    parameters_down: int = 0
    parameters: int = 0  # numbers in the state

    def spent(self, up: int, down: int, base: int) -> None:
        """Add the bytes of handshakes."""
        self.bytes_up, self.bytes_down, self.bytes_base = (
            self.bytes_up + up,
            self.bytes_down + down,
            self.bytes_base + base,
        )


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run when its first round begins.

    settings: run-config keys and values of the strategy, its wrappers and the task.
    first: number of the first round of this process; 0 unless an earlier run is resumed.
    rounds: number of the last round.
    """

    strategy: str
    config: TaskConfig  # with label names and the date filled in
    nodes: tuple[str, ...]  # names of the nodes that take part
    rounds: int
    first: int
    settings: Flat


class Callback:
    """An observer of a run; every hook does nothing until a subclass overrides it.

    Hooks are called in the server's process, between messages: a slow hook makes the run slower. If a hook raises, the
    log names it and the run continues, unless the callback is `essential`: then the run fails. A callback must not
    change a state. It may end the run after a round: `report.stopped = "why"` in `on_scores`.
    """

    essential: ClassVar[bool] = False  # whether the run fails where this callback does

    @property
    def name(self) -> str:
        """Return the callback's name in the log."""
        return type(self).__name__

    def on_start(self, facts: RunFacts) -> None:
        """Called once the nodes of a run are known, before its first round."""

    def on_scores(self, report: RoundReport, state: State) -> None:
        """Called after a round is scored, round 0 included, and before `on_round` of any callback. A callback that ends
        the run sets `report.stopped` here, so that nodes rate the last state too and all callbacks know."""

    def on_round(self, report: RoundReport, state: State) -> None:
        """Called after a round, round 0 included, before its state is stored.

        A run that is killed before the state is stored repeats the round after a resume.
        """

    def on_checkpoint(self, report: RoundReport, state: State) -> None:
        """Called after a round once its state is stored (or at once if the run stores none)."""

    def on_end(self, error: BaseException | None) -> None:
        """Called when the run has ended: by `error`, or None if it completed.

        A run that fails before its first round ends without `on_start`.
        """

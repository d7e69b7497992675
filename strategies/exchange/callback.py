"""Callbacks: who is told of a run, and what they are told.

A callback is handed to a run in `Federation.callbacks`, in the order in which it is called. The results folder, the
progress, early stopping and the trackers are callbacks; the round loop knows none of them by name.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from strategies.exchange.types import Metrics, State
from task.config import TaskConfig
from task.schema import Flat


@dataclass
class NodeReport:
    """What one node did in one round."""

    node: str
    rank: int
    bytes_down: int = 0
    bytes_up: int = 0
    journal: int = 0  # entries that it was sent; -1: the weights themselves, which were fewer bytes
    refused: str = ""  # the reason, where its reply did not count
    metrics: Metrics = field(default_factory=dict)

    @property
    def catches_up(self) -> bool:
        """Whether it was away, or is new."""
        return self.journal > 1 or self.journal < 0


@dataclass
class RoundReport:
    """What happened in one round; round 0 is the start."""

    number: int
    nodes: list[NodeReport] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)  # nodes that were left alone, because they did not answer before
    seconds: float = 0.0
    failed: str = ""  # the reason, where the state did not change
    stopped: str = ""  # the reason, where no further round may follow; a callback may set it
    rolled_back: str = ""  # the reason and the way, where the run went back to an earlier state: see collapse.py
    privacy: dict[str, float | str | None] = field(default_factory=dict)  # spent so far (`Mechanism.spent`)
    train: Metrics = field(default_factory=dict)  # means over nodes, weighted by rows
    aggregation_error: dict[str, float] = field(default_factory=dict)  # see aggregation_error.py; overall and by module
    evaluated_by_nodes: Metrics = field(default_factory=dict)
    medians_of_nodes: Metrics = field(default_factory=dict)  # of what nodes measured, each by itself
    evaluated_by_server: Metrics = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_base: int = 0  # offers of the base, counted apart from what training moves
    parameters_up: int = 0  # numbers that crossed, beside the bytes
    parameters_down: int = 0
    parameters: int = 0  # numbers in the state

    def spent(self, up: int, down: int, base: int) -> None:
        """Count bytes of meeting nodes."""
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
    nodes: tuple[str, ...]  # names of those that take part
    rounds: int
    first: int
    settings: Flat


class Callback:
    """Hears of a run; every hook does nothing until a subclass replaces it.

    Hooks are called in the server's process, between messages: a slow one makes the run slower. A hook that raises is
    named in the log, and the run continues; where the callback is `essential` the run fails instead. A callback must
    not change a state. It may end the run after a round: `report.stopped = "why"` in `on_round`.
    """

    essential: ClassVar[bool] = False  # whether the run fails where this callback does

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return type(self).__name__

    def on_start(self, facts: RunFacts) -> None:
        """Hear of a run whose nodes are known, before its first round."""

    def on_round(self, report: RoundReport, state: State) -> None:
        """Hear of a round that is over, round 0 included, before its state is kept.

        A run that is killed before the state is kept does the round again after a resume.
        """

    def on_checkpoint(self, report: RoundReport, state: State) -> None:
        """Hear of a round again, once its state is kept (or at once where the run keeps none)."""

    def on_end(self, error: BaseException | None) -> None:
        """Hear that the run is over: `error` ended it, None where it completed.

        A run that fails before its first round ends without `on_start`.
        """

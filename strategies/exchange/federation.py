"""How a federation is held: everything about a run that is neither the algorithm nor the task."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from strategies.exchange.types import Metrics, State
from task.models.base import Base
from task.schema import ConfigError

AUTO_NAMES, REGISTERED, FIRST_KEY = "auto", "registered", "first-key"  # whose names are whose; see names.py

RANGES: dict[str, tuple[float, float]] = {  # lowest and highest value of a field of Federation
    "seed": (0, math.inf),
    "fraction_train": (1e-6, 1),
    "fraction_evaluate": (1e-6, 1),
    "min_train_nodes": (1, math.inf),
    "min_available_nodes": (1, math.inf),
    "node_wait_timeout": (0, math.inf),
    "min_success_fraction": (0, 1),
    "max_failed_rounds": (1, math.inf),
    "evaluate_every": (1, math.inf),
    "max_weight_ratio": (0, math.inf),
    "outlier_factor": (0, math.inf),
    "collapse_factor": (0, 1),
    "keep_checkpoints": (0, math.inf),
    "dropout": (0, 1),
}


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
        """Was it away, or is it new?"""
        return self.journal > 1 or self.journal < 0


@dataclass
class RoundReport:
    """What happened in one round; round 0 is the start."""

    number: int
    nodes: list[NodeReport] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)  # nodes that were left alone, because they did not answer before
    seconds: float = 0.0
    failed: str = ""  # the reason, where the state did not change
    stopped: str = ""  # the reason, where no further round may follow
    rolled_back: str = ""  # the reason and the way, where the run went back to an earlier state: see collapse.py
    privacy: dict[str, float | str | None] = field(default_factory=dict)  # spent so far (`Mechanism.spent`)
    train: Metrics = field(default_factory=dict)  # means over nodes, weighted by rows
    aggregation_error: dict[str, float] = field(default_factory=dict)  # see meter.py; overall and by module
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


def evaluated(round: int, rounds: int, every: int) -> bool:
    """Is the state of a round evaluated? Those of round 0 and the last always are."""
    return round % every == 0 or round == rounds


OnRound = Callable[[RoundReport, State], None]
Score = Callable[[State], Metrics]
Probe = Callable[[State], float]  # the loss of a state on a few rows of the server's


@dataclass(frozen=True)
class Federation:
    """Who takes part, how long to wait, what counts as failure, what to keep. The defaults just work.

    node_names: whose a name is. "registered": the key's that was registered under it; "auto": likewise as soon as any
        key was, else nodes are believed; "first-key": likewise, and a name stays with the key that first said it.
    evaluate_every: rounds from one evaluation to the next, on the server or on nodes; see `evaluated`.
    dropout: share of replies that are let go, as if their nodes had dropped out in the middle of the round.
    max_weight_ratio: a node that claims more rows than this many times the median claim counts as the median one;
        0: every claim is believed. See `weights`.
    outlier_factor: an update longer than this many times the median is refused; 0: none is. See `plausible`.
    collapse_factor: a run that scores less than this share of what was usual goes back; 0: never. See `collapse`.
    keep_checkpoints: how many good states are kept beside the newest one, to go back to.
    base: what to start from and to offer; None: found by `model.name`.
    device: where the server has its own model; a name that torch knows.
    checkpoint: folder that holds the newest state after each round; None: none is kept.
    resume: go on from that state, with the settings of the run that left it; else start anew.
    score: evaluates the state on the server; beside Flower's `evaluate_fn` it spares a copy.
    probe: makes what measures the states that may follow the one it is given, in nats, from 0 to 10^6; None where the
        server's rows do not do. See `examination`.
    on_round: called after every round with its report and the state, round 0 included, before the state is kept. A run
        that is killed between the two does that round again.
    on_kept: called likewise once the state is kept.
    """

    seed: int = 0
    fraction_train: float = 1.0
    fraction_evaluate: float = 1.0
    min_train_nodes: int = 1
    min_available_nodes: int = 1
    node_wait_timeout: float = 120.0
    node_names: str = AUTO_NAMES
    min_success_fraction: float = 0.5
    max_failed_rounds: int = 3
    evaluate_every: int = 1
    max_weight_ratio: float = 5.0
    outlier_factor: float = 5.0
    collapse_factor: float = 0.65
    keep_checkpoints: int = 2
    dropout: float = 0.0
    base: Base | None = None
    device: str = "cpu"
    checkpoint: Path | None = None
    resume: bool = False
    score: Score | None = None
    probe: Callable[[State], Probe | None] | None = None
    on_round: OnRound | None = None
    on_kept: OnRound | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of their range, all of them."""
        problems = []
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                most = "" if high == math.inf else f" and at most {high:g}"
                problems.append(f"federation: {name} = {value!r} must be a number of at least {low:g}{most}")
        if self.node_names not in (AUTO_NAMES, REGISTERED, FIRST_KEY):
            problems.append(f"federation: node_names = {self.node_names!r} is none of auto, registered and first-key")
        if problems:
            raise ConfigError(problems)

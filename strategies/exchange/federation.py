"""The settings of a federation: everything about a run that is neither the algorithm nor the task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from strategies.exchange.callback import Callback
from strategies.exchange.types import Metrics, State
from task.models.base import Base
from task.schema import ConfigError

AUTO_NAMES, REGISTERED, FIRST_KEY = "auto", "registered", "first-key"  # how names are bound to keys; see names.py

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


def evaluated(round: int, rounds: int, every: int) -> bool:
    """Return whether the state of a round is evaluated. Round 0 and the last round always are."""
    return round % every == 0 or round == rounds


Score = Callable[[State], Metrics]


class Probe(Protocol):
    """The loss of a state on a few rows of the server's, in nats, from 0 to 10^6."""

    def __call__(self, state: State, /) -> float:
        """Return the mean loss."""
        ...

    def by_label(self, state: State, /) -> Sequence[float]:
        """Return the mean loss of the rows of each label."""
        ...


@dataclass(frozen=True)
class Federation:
    """Settings of a run: who takes part, how long to wait, what counts as failure, what to keep.

    node_names: how names are bound to keys. "registered": a name belongs to the key that was registered under it;
        "auto": the same as soon as any key is registered, else nodes are believed; "first-key": the same, and a name
        stays with the key that used it first.
    evaluate_every: rounds from one evaluation to the next, on the server or on nodes; see `evaluated`.
    dropout: share of replies that are discarded, as if their nodes had dropped out in the middle of the round.
    max_weight_ratio: a node that claims more rows than this many times the median claim counts as the median node;
        0: every claim is believed. See `row_limits`.
    outlier_factor: an update longer than this many times the median is refused; 0: none is. See `outliers`.
    collapse_factor: a run that scores less than this share of its usual score is rolled back; 0: never. See `collapse`.
    keep_checkpoints: how many good states are kept besides the newest one, to roll back to.
    base: what to start from and to offer; None: found by `model.name`.
    device: torch's name of the device of the server's own model.
    checkpoint: folder of the newest state, written after each round; None: no state is kept.
    resume: continue from that state, with the settings of the run that wrote it; else start anew.
    score: evaluates the state on the server; unlike Flower's `evaluate_fn` it needs no copy.
    probe: returns what measures the states that may follow a given one; None if the server has too few rows. See
        `examination`.
    callbacks: observers of the run, called in this order; see `Callback`.
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
    callbacks: tuple[Callback, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of their range, all of them."""
        problems = []
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                most = "" if high == math.inf else f" and at most {high:g}"
                problems.append(f"federation: {name} = {value!r} must be a number of at least {low:g}{most}")
        if self.node_names not in (AUTO_NAMES, REGISTERED, FIRST_KEY):
            problems.append(f"federation: node_names = {self.node_names!r} must be auto, registered or first-key")
        for place, callback in enumerate(self.callbacks):
            if not isinstance(callback, Callback):
                problems.append(f"federation: callbacks[{place}] = {callback!r} must be a Callback")
        if problems:
            raise ConfigError(problems)

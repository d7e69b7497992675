"""The run context: what stays the same for a whole run, in one value."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from strategies.exchange.federation import Federation
from strategies.exchange.strategy import Strategy
from strategies.rounds.run_state import RunState
from task.config import TaskConfig
from task.models.base import Base
from task.models.finding import server_base
from task.storage.store import server_store


@dataclass(frozen=True)
class RunContext:
    """The settings and connections of one run. Only `run_state` changes while it runs."""

    strategy: Strategy
    grid: Grid
    config: TaskConfig  # of training
    evaluate_config: TaskConfig  # of evaluation: device and threads may differ
    federation: Federation
    run_state: RunState
    rounds: int
    timeout: float  # seconds, per round
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None

    @cached_property
    def base(self) -> Base:
        """Return the base that all nodes start from, found or trained on first access."""
        return self.federation.base or server_base(self.config.model, server_store())

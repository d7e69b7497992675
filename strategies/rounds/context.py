"""The run context: what stays the same for a whole run, in one value."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from strategies.exchange.bare_base import found_base
from strategies.exchange.federation import Federation
from strategies.exchange.strategy import Strategy
from strategies.rounds.run_state import RunState
from task.config import TaskConfig
from task.models.base import Base
from task.storage.store import server_store

LOG = logging.getLogger("flwr")


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

    @property
    def base(self) -> Base:
        """Return the base that all nodes start from, found or trained on first access. Its fingerprint may be known
        only after the handshake."""
        return replace(found := self._found, fingerprint=found.fingerprint or self.run_state.base)

    @cached_property
    def _found(self) -> Base:
        if self.federation.base:
            return self.federation.base
        base, why = found_base(self.strategy, self.config, server_store())
        if base.bare:
            LOG.info("the server reads no weights of the base '%s'; nodes alone hold it", base.name)
        elif self.config.evaluate == "nodes":
            LOG.info("the server reads the weights of the base '%s': %s", base.name, why)
        return base

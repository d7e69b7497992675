"""The base class of strategies: an algorithm that is a Flower strategy too.

A strategy is a frozen dataclass in a file of `strategies/`; its fields, made by `task.schema.option`, are its options.
`start` runs the round loop in any ServerApp. Instances have no state and can be reused.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from strategies.exchange.algorithm import (
    EQUAL_RANKS,
    EXACT,
    FIXED_POINT,
    IDENTITY,
    ORDER,
    PRODUCTS,
    WEIGHTS,
    Algorithm,
)
from strategies.exchange.federation import Federation
from strategies.exchange.server_optimizer import ServerOptimizer
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.schema import Flat, flatten

__all__ = ["EQUAL_RANKS", "EXACT", "FIXED_POINT", "IDENTITY", "ORDER", "PRODUCTS", "WEIGHTS", "Strategy"]

LOG = logging.getLogger("flwr")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class Strategy(Algorithm, FlowerStrategy):
    """Federated averaging, until a method of `Algorithm` is overridden."""

    wrappers: tuple[Wrapper, ...] = field(default=(), kw_only=True)
    server_optimizer: ServerOptimizer | None = field(default=None, kw_only=True)  # None: the mean is the step

    run_federation: ClassVar[Callable[..., Result]]  # the round loop, set by the package `strategies`

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | TaskConfig | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        federation: Federation | None = None,
    ) -> Result:
        """Run the federation. The arguments are Flower's, and `federation`.

        Without `initial_arrays`, the base and the tuning decide the initial state. `train_config` is a `TaskConfig`, or
        has its settings under their run-config keys (`tuning`, `learning-rate`, `data.name`, ...). `evaluate_config`
        has the settings that differ when nodes evaluate (`device`, `threads`). Both travel in every message, so nodes
        need no configuration of their own. `timeout` is in seconds, per round.

        Raises ConfigError for bad settings, RunFailed when the federation cannot continue.
        """
        return self.run_federation(
            self,
            grid=grid,
            initial_arrays=initial_arrays,
            num_rounds=num_rounds,
            timeout=timeout,
            train_config=train_config or {},
            evaluate_config=evaluate_config or {},
            evaluate_fn=evaluate_fn,
            federation=federation or Federation(),
        )

    def summary(self) -> None:
        """Log the name and the options of this strategy."""
        LOG.info("Starting %s: %s", self.name, ", ".join(f"{key}={value}" for key, value in self.to_flat().items()))

    def to_flat(self) -> Flat:
        """Return the run-config keys from which `strategies.from_values` makes the same strategy again."""
        flat: Flat = {"strategy": self.name, **flatten(self, f"{self.name}.", changed_only=True)}
        for wrapper in self.wrappers:
            flat |= flatten(wrapper, f"{wrapper.name}.", changed_only=True)
        if self.server_optimizer:
            flat["server-optimizer"] = self.server_optimizer.name
            flat |= flatten(self.server_optimizer, self.server_optimizer.prefix, changed_only=True)
        if self.wrappers:
            flat["wrappers"] = ",".join(wrapper.name for wrapper in self.wrappers)
        return flat

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raise RuntimeError: the strategy runs its own loop; see `start`."""
        self._only_start()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raise RuntimeError: the strategy runs its own loop; see `start`."""
        self._only_start()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raise RuntimeError: the strategy runs its own loop; see `start`."""
        self._only_start()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Raise RuntimeError: the strategy runs its own loop; see `start`."""
        self._only_start()

    def _only_start(self) -> NoReturn:
        """Raise RuntimeError. Flower's hooks see neither what a node was sent nor who it is, so they cannot carry these
        methods."""
        raise RuntimeError(f"'{self.name}' runs its own round loop: call start(grid, ...) instead of Flower's hooks")

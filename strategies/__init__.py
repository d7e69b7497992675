"""Strategies: how a round exchanges and combines. One algorithm a file; the file's name is its key.

import strategies
strategies.load("rbla").start(grid, num_rounds=3)
"""

from typing import Any

from flwr.serverapp.strategy import Result

from strategies.exchange.strategy import Strategy
from strategies.registry import (
    from_values,
    load,
    load_optimizer,
    load_wrapper,
    names,
    optimizer_class,
    optimizer_names,
    option_keys,
    strategy_class,
    wrapper_class,
    wrapper_names,
)

__all__ = [
    "from_values",
    "load",
    "load_optimizer",
    "load_wrapper",
    "names",
    "optimizer_class",
    "optimizer_names",
    "option_keys",
    "strategy_class",
    "wrapper_class",
    "wrapper_names",
]


def _run_federation(strategy: Strategy, **arguments: Any) -> Result:
    """Run the server's round loop, which nodes never import."""
    from strategies.rounds.loop import run_federation

    return run_federation(strategy, **arguments)


Strategy.run_federation = staticmethod(_run_federation)  # the one place that ties a strategy to the loop

"""Whether a strategy, its wrappers and a run's settings fit together: asked before any node is."""

from strategies.exchange import compatibility
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from task.config import TaskConfig


def misfits(strategy: Algorithm, config: TaskConfig, federation: Federation | None = None) -> list[str]:
    """Why a strategy cannot run with these settings, if so."""
    found = strategy.problems(config)
    if strategy.tunings is not None and config.tuning not in strategy.tunings:
        fits = " or ".join(f"'{tuning}'" for tuning in sorted(strategy.tunings))
        found.append(f"strategy = '{strategy.name}' needs tuning = {fits}, not '{config.tuning}'")
    found += compatibility.problems(strategy)
    for wrapper in strategy.wrappers:
        found += wrapper.unsuited(strategy, config) + wrapper.unfit(config, federation)
    if strategy.personal and config.evaluate != "nodes":
        found.append(f"strategy = '{strategy.name}' leaves a model of its own on every node: set evaluate = 'nodes'")
    return found

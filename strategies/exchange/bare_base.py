"""Whether the server of a run needs the weights of the base, or only what describes them.

It does without if nodes alone evaluate, no strategy writes into the base, and nothing that the run starts from is a
weight of the base or computed from one. Memory, and the network, then see no weights: the server draws what a tuning
adds, and a new head, from the run's seed, to the same bits as with them.
"""

from typing import NamedTuple

import torch

from strategies.exchange import head_rounds
from strategies.exchange.strategy import Strategy
from task.config import TaskConfig
from task.kinds import registry as kinds
from task.models.base import Base, BaseError
from task.models.finding import server_base
from task.models.model import tuned_model
from task.storage.store import Store
from task.tunings.base import TuningError


class Found(NamedTuple):
    """A base, and why the server reads its weights; empty: it does not."""

    base: Base
    why: str


def found_base(strategy: Strategy, config: TaskConfig, store: Store) -> Found:
    """Return the base of a run on the server, bare if that is enough. `config` has the labels of the run.

    Raises BaseError, and says why weights are needed if they are not there.
    """
    if not (why := _needs(strategy, config)):
        base = server_base(config.model, store, bare=True, weights=kinds.of(config).drawn_head)
        if not (why := _reads(strategy, base, config)):
            return Found(base, "")
    try:
        return Found(server_base(config.model, store), why)
    except BaseError as error:
        if config.evaluate != "nodes":
            raise
        raise BaseError(f"{error}; the server needs the base's weights: {why}", error.public) from error


def _needs(strategy: Strategy, config: TaskConfig) -> str:
    """Return why the settings alone say that the server needs the weights."""
    tuning = f"tuning = '{config.tuning.name}'"
    if config.evaluate != "nodes":
        return f"evaluate = '{config.evaluate}' scores on the server"
    if strategy.writes_base:
        return f"strategy = '{strategy.name}' changes the base"
    if config.tuning.starts_from_base:
        return f"{tuning} with these options starts from what is computed from them"
    if config.tuning.folds:
        return f"the model of {tuning} is saved with them"
    return f"{tuning} trains them" if config.tuning.in_place else ""


def _reads(strategy: Strategy, base: Base, config: TaskConfig) -> str:
    """Return which tensor that trains, or of the initial state, is one of the weights or computed from them."""
    rank = max(config.tuning.budgets() or config.tuning.candidates())
    try:
        model = tuned_model(base, config, rank, "cpu")
        state = head_rounds.initial(strategy, model, config)
    except TuningError as error:  # of a tuning that calls layers to find out what they do
        return f"tuning = '{config.tuning.name}' cannot be set up without them ({error})"
    for name, tensor in {**model.trained, **state.tensors, **state.server}.items():
        if not bool(torch.isfinite(tensor).all()):
            return f"tuning = '{config.tuning.name}' starts '{name}' from them"
    return ""

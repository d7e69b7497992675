"""Head rounds: in the first rounds of a run a classifier's head trains alone, whatever the strategy.

A new head sends large and misleading gradients into a pretrained body. So it is fitted first, on features that do not
change: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv
2202.10054 (LP-FT).

In these rounds the state has the head's tensors alone, and every strategy does with them what it always does. All other
tensors rest on the server, among those that only the server has. They are as the model was built, so no message needs
them: a node resets its own. After the last head round they come back.
"""

from collections.abc import Iterable
from dataclasses import replace

from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.types import RunFailed, State
from task.config import TaskConfig
from task.models.model import TunedModel

RESTING = "resting "  # prefix of names on the server


def problems(strategy: Algorithm, config: TaskConfig) -> list[str]:
    """Return why the head cannot train alone, or at a rate of its own."""
    found, name = [], strategy.name
    if config.head_rounds and not strategy.exchanges_tensors:
        found.append(
            f"strategy = '{name}' exchanges no tensors of the model, so it cannot send the head alone: set "
            "head-rounds = 0"
        )
    if config.head_rate not in (0, 1) and not strategy.gradients:
        found.append(f"strategy = '{name}' moves all tensors by the same steps, without gradients: set head-rate = 0")
    return found


def too_few(config: TaskConfig, rounds: int) -> list[str]:
    """Return the problem of a run that ends before anything but the head trains."""
    if not config.head_rounds or config.head_rounds < rounds:
        return []
    return [
        f"head-rounds = {config.head_rounds} leaves none of num-server-rounds = {rounds} to the rest of the model: set "
        "fewer, or tuning = 'head'"
    ]


def initial(strategy: Algorithm, model: TunedModel, config: TaskConfig) -> State:
    """Return the state before round 1; if there are head rounds, with the head's tensors alone. Raises RunFailed if the
    strategy does not exchange them."""
    state = strategy.initial(model)
    return _rested(state, model.head) if config.head_rounds else state


def whole(state: State) -> State:
    """Return the state with all its tensors; the same state if none rest."""
    resting = {name: tensor for name, tensor in state.server.items() if name.startswith(RESTING)}
    if not resting:
        return state
    back = {name.removeprefix(RESTING): tensor for name, tensor in resting.items()}
    server = {name: tensor for name, tensor in state.server.items() if name not in resting}
    return replace(state, tensors=back | state.tensors, server=server)


def begun(state: State, config: TaskConfig, round: int) -> State:
    """Return the state that a round begins with: whole after the last head round."""
    return state if round <= config.head_rounds else whole(state)


def _rested(state: State, head: Iterable[str]) -> State:
    names = set(head)
    if missing := sorted(names - state.tensors.keys()):
        raise RunFailed(f"head-rounds: the strategy does not exchange '{missing[0]}' of the head; set head-rounds = 0")
    resting = {RESTING + name: tensor for name, tensor in state.tensors.items() if name not in names}
    return replace(state, tensors=_only(state.tensors, names), server=state.server | resting)


def _only(tensors: Tensors, names: set[str]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name in names}

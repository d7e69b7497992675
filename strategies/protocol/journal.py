"""Replay of the journal: each entry is applied once, starting from the model's current position.

A journal position is a hash of all entries up to a place in the journal; the empty position is the base. A model knows
its position, so a process that has replayed a part continues from there, whichever node it serves.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from strategies.algebra.tensors import Tensors, raw, snapshot
from strategies.exchange.replay import is_start, replay_start
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import BASE_POSITION, Assignment, Entry, State
from task.config import TaskConfig
from task.models.base import Base
from task.models.model import TunedModel, pristine, tuned_model

NOWHERE = "nowhere"  # position of a model whose replay was interrupted
REPLAY_STATE = "beside "  # prefix of the names of tensors that a journal changes besides the weights


def held(strategy: Strategy, base: Base, config: TaskConfig, state: State, device: str = "cpu") -> TunedModel:
    """Return the server's own model (this process's) with the whole state installed."""
    whole = Assignment(round=0, rounds=0, seed=0, rank=state.rank)
    return installed(strategy, tuned_model(base, config, state.rank, device), strategy.start_of(state, whole))


def followed(strategy: Strategy, model: TunedModel, state: State, since: str, base_weights: Tensors) -> TunedModel:
    """Return the server's own model with a state whose journal is known up to the position `since`, where the weights
    are `base_weight`. Installing one of many states that may follow it then replays nothing earlier."""
    whole = Assignment(round=0, rounds=0, seed=0, rank=state.rank)
    return installed(strategy, model, replace(strategy.start_of(state, whole).after(since), base_weights=base_weights))


def installed(strategy: Strategy, model: TunedModel, start: State) -> TunedModel:
    """Return the model as the server has it; `start` has the whole journal."""

    def path(reached: str) -> Sequence[str]:
        return start.positions[start.positions.index(reached) :] if reached in start.positions else start.positions

    def entry(position: str) -> Entry:
        return start.journal[start.positions.index(position) - 1]

    return installed_from(strategy, model, start, path, entry, lambda position: start.base_weights)


def installed_from(
    strategy: Strategy,
    model: TunedModel,
    start: State,
    path: Callable[[str], Sequence[str]],
    entry: Callable[[str], Entry],
    base_weights: Callable[[str], Tensors],
) -> TunedModel:
    """Return the model after all entries, with the tensors of `start`.

    `path` gives the positions from the model's own to the end of the journal, so that the cost of a round does not
    depend on the length of the journal. If the model is at none of them, it gives the positions from the base, or from
    the weights that `base_weights` returns for the first of them. `entry` returns the entry that leads to a position;
    entries that the model has replayed are not asked for. A model that is elsewhere (another run's journal, a later
    position, weights that a round changed and this start does not replace) is rebuilt from the base.
    """
    here = NOWHERE if model.changed - start.tensors.keys() else model.position
    first, *following = path(here)
    if first != here:
        model = pristine(model)
        if first != BASE_POSITION:
            _stand(model, base_weights(first))
            model.position = first
    for position in following:
        model.position = NOWHERE
        _replay(strategy, model, entry(position), position)
        model.position = position
    strategy.install(model, start)
    return model


def _replay(strategy: Strategy, model: TunedModel, entry: Entry, position: str) -> None:
    """Replay an entry that leads to `position`: by the tuning if the run starts from it, else by the strategy."""
    if is_start(model, entry):
        replay_start(model, entry)
        model.start_position = position
    else:
        strategy.replay(model, entry)


# ---------------------------------------------------------------------- the weights themselves


def base_weights_of(model: TunedModel) -> Tensors:
    """Return copies of what a journal has made of the base: the weights that it changes, and its replay state."""
    return snapshot(_led(model))


def base_weight_bytes(model: TunedModel) -> int:
    """Return how many bytes `base_weights_of` returns."""
    return sum(tensor.nbytes for tensor in _led(model).values())


def fingerprint(model: TunedModel) -> str:
    """Return a hash of these weights: equal on machines that have the same bits."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in _led(model).items():
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        hashed.update(raw(tensor))
    return hashed.hexdigest()


def _led(model: TunedModel) -> Tensors:
    replay_state = {REPLAY_STATE + name: tensor for name, tensor in sorted(model.replay_state.items())}
    return {name: model.base_weight(name) for name in sorted(model.journaled)} | replay_state


def _stand(model: TunedModel, base_weights: Tensors) -> None:
    for name, tensor in base_weights.items():
        if name.startswith(REPLAY_STATE):
            model.replay_state[name.removeprefix(REPLAY_STATE)] = tensor.to(model.device, copy=True)
        else:
            model.base_weight(name).copy_(tensor)

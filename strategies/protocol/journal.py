"""Keeping a model up with a journal: entries are replayed once, from where the model is.

A mark is a hash of all entries up to a place in a journal, the base included as the empty mark. A model knows the
mark it is at, so a process that has replayed a part goes on from there, whichever node it serves.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from strategies.algebra.tensors import Tensors, raw, snapshot
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import BASE_POSITION, Assignment, Entry, State
from task.config import TaskConfig
from task.models.base import Base
from task.models.model import TunedModel, pristine, tuned_model

NOWHERE = "nowhere"  # where a replay that broke off leaves a model
REPLAY_STATE = "beside "  # in front of the names of what a journal leads beside weights


def held(strategy: Strategy, base: Base, config: TaskConfig, state: State, device: str = "cpu") -> TunedModel:
    """The server's own model (this process's) with the whole state in it."""
    whole = Assignment(round=0, rounds=0, seed=0, rank=state.rank)
    return installed(strategy, tuned_model(base, config, state.rank, device), strategy.start_of(state, whole))


def followed(strategy: Strategy, model: TunedModel, state: State, since: str, base_weights: Tensors) -> TunedModel:
    """The server's own model with a state in it whose journal is known up to the mark `since`, where weights are
    `base_weight`: so that one of many states that may follow it costs no replay of what was before."""
    whole = Assignment(round=0, rounds=0, seed=0, rank=state.rank)
    return installed(strategy, model, replace(strategy.start_of(state, whole).after(since), base_weights=base_weights))


def installed(strategy: Strategy, model: TunedModel, start: State) -> TunedModel:
    """The model as the server holds it; `start` has the whole journal."""

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
    """The model after all entries, with the tensors of `start`.

    `path` gives the marks from where the model is to the end of the journal, so that a round costs the same however
    long the journal is; where the model is not on the way, those from the base, or from the weights that
    `base_weights` gives for the first of them. `entry` gives the entry that leads to a mark; what the
    model has seen is not asked for. A model that is elsewhere (another run's journal, a later place in this one,
    weights that a round changed and this start leaves alone) is built again from the base.
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
        strategy.replay(model, entry(position))
        model.position = position
    strategy.install(model, start)
    return model


# ---------------------------------------------------------------------- the weights themselves


def base_weights_of(model: TunedModel) -> Tensors:
    """Copies of what a journal has made of the base: the weights that it changes, and what it leads beside them."""
    return snapshot(_led(model))


def base_weight_bytes(model: TunedModel) -> int:
    """How many bytes `base_weights_of` has."""
    return sum(tensor.nbytes for tensor in _led(model).values())


def fingerprint(model: TunedModel) -> str:
    """A hash of all that: equal on machines that stand on the same bits."""
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

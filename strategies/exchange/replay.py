"""Ways to replay an entry of a journal, and the entry that a run may start from."""

from dataclasses import replace

from strategies.algebra.lowrank import products
from strategies.exchange import head_rounds
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.types import Entry, State
from task.config import TaskConfig
from task.models.model import TunedModel


def merge_products(model: TunedModel, entry: Entry) -> None:
    """Replay an entry of products: add scaling * B A to the base weights."""
    for name, product in products(entry.tensors):
        model.shift_product(name, model.config.tuning.product_scale() * product)


def initial_state(strategy: Algorithm, model: TunedModel, config: TaskConfig) -> State:
    """Return the state before round 1, given a new model: the strategy's own, after what the tuning starts from."""
    entry = start_entry(model)
    if entry is None:
        return head_rounds.initial(strategy, model, config)
    replay_start(model, entry)
    return replace(head_rounds.initial(strategy, model, config), journal=(entry,))


def start_entry(model: TunedModel) -> Entry | None:
    """Return what a run of the model's tuning starts from, as an entry of round 0, computed from the base; None if
    that is the base alone."""
    tuning = model.config.tuning
    return Entry(0, 0, tuning.start(model.linear_weights(), model.rank)) if tuning.starts_from_base else None


def is_start(model: TunedModel, entry: Entry) -> bool:
    """Return whether an entry is the one of `start_entry`."""
    return entry.round == 0 and model.config.tuning.starts_from_base


def replay_start(model: TunedModel, entry: Entry) -> None:
    """Replay the entry of `start_entry`: factors get its values, as those that they are reset to. If the tuning moves
    the base, scaling * B A is subtracted from it."""
    for name, tensor in entry.tensors.items():
        model.base_weight(name).copy_(tensor)
    model.write({name: tensor for name, tensor in entry.tensors.items() if name in model.trained})
    if model.config.tuning.moves_base:
        for name, product in products(entry.tensors):
            model.shift_product(name, -model.config.tuning.product_scale() * product)
    model.start = entry.tensors

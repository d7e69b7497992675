"""Keeping a model up with a journal: entries are replayed once, from where the model is.

A mark is a hash of all entries up to a place in a journal, the base included as the empty mark. A model knows the
mark it is at, so a process that has replayed a part goes on from there, whichever node it serves.
"""

from collections.abc import Callable, Sequence

from strategies.algebra.lowrank import products
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.vocabulary import Entry, State
from task.model import TunedModel, pristine

NOWHERE = "nowhere"  # where a replay that broke off leaves a model


def merge(model: TunedModel, entry: Entry) -> None:
    """Replay an entry of products: add scaling * B A to the weights that the model stands on."""
    for name, product in products(entry.tensors):
        model.shift(name, model.config.lora.scaling * product)


def installed(strategy: Algorithm, model: TunedModel, start: State) -> TunedModel:
    """The model as the server holds it; `start` has the whole journal."""
    return installed_from(strategy, model, start, start.marks, lambda number: start.journal[number])


def installed_from(
    strategy: Algorithm, model: TunedModel, start: State, marks: Sequence[str], entry: Callable[[int], Entry]
) -> TunedModel:
    """The model after entries 0, 1, ... with the tensors of `start`; `marks` has one mark more than there are entries.

    Entries that the model has seen are not asked for. A model that is elsewhere (another run's journal, a later
    place in this one, weights that a round changed and this start leaves alone) is built again from the base.
    """
    if model.mark not in marks or model.changed - start.tensors.keys():
        model = pristine(model)
    for number in range(marks.index(model.mark), len(marks) - 1):
        model.mark = NOWHERE
        strategy.replay(model, entry(number))
        model.mark = marks[number + 1]
    strategy.install(model, start)
    return model

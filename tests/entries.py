"""Journals of small entries for the embedded base, and models that are brought to a place in them."""

from dataclasses import dataclass, field

import torch

from strategies.algebra.tensors import Tensors, snapshot
from strategies.exchange.types import Entry, State
from strategies.flora import Flora
from task.config import Model, TaskConfig
from task.models.finding import server_base
from task.models.model import TunedModel, build, kept_model, tuned_model
from task.storage.store import server_store

TASK = TaskConfig.read({"data.labels": "0|1|2|3|4|5|6|7|8|9", "lora.targets": "q_proj"})
ADAPTED = "vit.layers.0.attention.q_proj"


def entry(number: int, seed: int = 0) -> Entry:
    """A product of rank 1 for one layer of the embedded base, different for every number."""
    numbers = torch.Generator().manual_seed(number)
    b, a = torch.randn(64, 1, generator=numbers), torch.randn(1, 64, generator=numbers)
    return Entry(number, seed, {f"{ADAPTED}.lora_B.weight": b / 8, f"{ADAPTED}.lora_A.weight": a / 8})


@dataclass(frozen=True)
class Listening(Flora):
    """FLoRA that remembers which entries it replayed."""

    heard: list[int] = field(default_factory=list)

    writes_base = True

    def replay(self, model: TunedModel, entry: Entry) -> None:
        self.heard.append(entry.round)
        super().replay(model, entry)


def at_the_base() -> TunedModel:
    """A model of this process that has done nothing."""
    kept_model.cache_clear()
    return tuned_model(server_base(Model(), server_store()), TASK, 2, "cpu")


def values(model: TunedModel) -> Tensors:
    return snapshot({**model.frozen, **model.trained})


def fresh_at(strategy: Flora, state: State) -> Tensors:
    """A model that was built for this state alone."""
    model = build(server_base(Model(), server_store()), TASK, 2, "cpu")
    for one in state.journal:
        Flora.replay(strategy, model, one)
    strategy.install(model, state)
    return values(model)


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def state_of(*numbers: int) -> State:
    head = {"classifier.bias": torch.full((10,), float(len(numbers)))}
    return State(head, tuple(entry(number) for number in numbers))

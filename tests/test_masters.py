"""What trained tensors stand on: float32 masters, copied while nothing was trained, in which small changes add up."""

from typing import Any

import pytest
import torch
from in_process import InProcessGrid, equal, suiting, watched
from laws import loaded, toy_model, trainer

import client_app
import strategies
import strategies.rounds.loop  # before builds are counted: it has one of its own
import task.models.model
from strategies.algebra.tensors import snapshot
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Entry, State, Update
from strategies.ferret import NUMBERS, ROW, Ferret
from task.config import Model, TaskConfig
from task.models.base import Base
from task.models.finding import server_base
from task.models.model import TunedModel, build, kept_model
from task.storage.store import server_store

NARROW = [torch.bfloat16, torch.float16]
ASSIGNMENT = Assignment(1, 3, 9, 0, 5)


@pytest.fixture(scope="module")
def base() -> Base:
    return server_base(Model(), server_store())


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices of all models that are built."""
    seen: list[str] = []

    def counted(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
        seen.append(device)
        return build(base, config, rank, device)

    monkeypatch.setattr(task.models.model, "build", counted)
    return seen


def head(base: Base, dtype: str = "float32") -> TunedModel:
    labels = "|".join(str(digit) for digit in range(10))
    return build(base, TaskConfig.read({"tuning": "head", "data.labels": labels, "model.dtype": dtype}), 0, "cpu")


# ---------------------------------------------------------------------- where they come from


def test_they_are_copied_while_nothing_was_trained(base: Base, builds: list[str]) -> None:
    model = head(base)
    held = snapshot(model.trained)
    assert equal({name: model.base_weight(name) for name in model.trained}, held)
    for name in model.trained:
        model.base_weight(name).add_(1)
    assert equal(snapshot(model.trained), held)
    model.reset(model.trained)
    assert builds == []


def test_a_tensor_gets_the_order_in_memory_in_which_masters_are_added_to(base: Base) -> None:
    model = head(base)
    weight = model.trained["classifier.weight"]
    held = weight.detach().clone()
    weight.data = held.T.contiguous().T
    model.reset(["classifier.weight"])
    assert weight.is_contiguous()
    assert torch.equal(weight, held)


@pytest.mark.parametrize("how", ["training", "writing"])
def test_they_are_built_again_once_where_something_was(base: Base, builds: list[str], how: str) -> None:
    model, held = head(base), snapshot(head(base).trained)
    if how == "training":
        next(iter(trainer().losses(model)))  # a step was begun
    for name, tensor in held.items():
        if how == "writing":
            model.write({name: tensor + 1})
        else:
            model.trained[name].data.add_(1)
    assert equal({name: model.base_weight(name) for name in model.trained}, held)
    model.reset(model.trained)
    assert equal(snapshot(model.trained), held)
    assert builds == ["cpu"]


def test_a_fit_is_training(base: Base) -> None:
    model = toy_model(loaded("ferret"), 1, 2)
    model.untouched = True
    trainer().fit(model)
    assert not model.untouched


@pytest.mark.parametrize("strategy", [strategies.load("ferret", coordinates=640), loaded("fedkseed")], ids=str)
def test_nothing_is_built_for_masters_in_a_whole_run(builds: list[str], strategy: Strategy) -> None:
    """There is one model, of all nodes and of the server."""
    kept_model.cache_clear()
    seen = watched(strategy, suiting(strategy.name), 2, InProcessGrid(client_app.app, 3))
    assert not any(line.refused for report, _ in seen for line in report.nodes)
    assert len(builds) == 1


# ---------------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_they_have_32_bits_where_the_model_has_16(base: Base, dtype: str) -> None:
    model = head(base, dtype)
    for name, tensor in model.trained.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert model.base_weight(name).dtype == torch.float32
        assert torch.equal(model.base_weight(name), tensor.detach().float())


def ferret(**options: Any) -> Ferret:
    """All 16 coordinates of the toy: what is sent is what was learned."""
    chosen = strategies.load("ferret", **({"coordinates": 16, "block": 256} | options))
    assert isinstance(chosen, Ferret)
    return chosen


def ones(strategy: Ferret, dtype: torch.dtype) -> TunedModel:
    """The toy in 16 bits, on a base of ones."""
    model = toy_model(strategy, 1, 2)
    model.initial_values = {name: torch.ones_like(tensor) for name, tensor in model.initial_values.items()}
    for tensor in model.trained.values():
        tensor.data = torch.ones_like(tensor.data, dtype=dtype)
    return model


def entry_of(strategy: Ferret, model: TunedModel, size: float) -> Entry:
    """Of a round in which one node learned `size` for every weight."""
    learned = {name: torch.full(tensor.shape, size) for name, tensor in model.trained.items()}
    nothing = {name: torch.zeros_like(tensor) for name, tensor in learned.items()}
    given = strategy._projection(learned).project(learned, nothing, strategy._seeds(ASSIGNMENT))
    row = dict(zip(ROW, (given.numbers, given.counts, given.scales), strict=True))
    state = strategy.initial(model)
    return strategy.apply(state, strategy.combine(state, [Update("0", ASSIGNMENT, row, 1.0)]), 1).journal[0]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_small_changes_add_up(dtype: torch.dtype, momentum: float) -> None:
    """Forty changes, each less than half of what the model could hold."""
    strategy = ferret(momentum=momentum)
    model, size = ones(strategy, dtype), float(torch.finfo(dtype).eps) / 8
    entry = entry_of(strategy, model, size)
    for _ in range(40):
        strategy.replay(model, entry)
    strategy.install(model, State({}))
    place, velocity = 1.0, 0.0
    for _ in range(40):
        velocity = momentum * velocity + size
        place += velocity
    for name, tensor in model.trained.items():
        torch.testing.assert_close(model.base_weight(name), torch.full(tensor.shape, place), rtol=0, atol=size / 10)
        assert tensor.dtype == dtype
        assert torch.equal(tensor.detach(), model.base_weight(name).to(dtype))
        assert bool((tensor > 1).all())
    assert all(tensor.dtype == torch.float32 for tensor in model.replay_state.values())
    assert bool(model.replay_state) == bool(momentum)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("seeds", ["fresh", "shared", "pool"])
def test_a_change_counts_from_what_the_model_could_hold(dtype: torch.dtype, seeds: str) -> None:
    """A node that learns nothing sends nothing, though its model is not where the masters are."""
    strategy = ferret(seeds=seeds)
    model = ones(strategy, dtype)
    for name in model.trained:
        model.base_weight(name).add_(float(torch.finfo(dtype).eps) / 8)
    state = strategy.initial(model)
    strategy.install(model, strategy.start_of(state, ASSIGNMENT))
    update, _ = strategy.train(model, Idle(trainer()), ASSIGNMENT)  # type: ignore[arg-type]
    assert not update[NUMBERS].any()
    moved, _ = strategy.train(model, Idle(trainer(), 0.5), ASSIGNMENT)  # type: ignore[arg-type]
    assert moved[NUMBERS].any()


class Idle:
    """Moves every weight by `step`."""

    def __init__(self, other: Any, step: float = 0.0) -> None:
        self.config, self.step = other.config, step

    def fit(self, model: TunedModel) -> dict[str, float]:
        for tensor in model.trained.values():
            tensor.data += self.step
        return {}

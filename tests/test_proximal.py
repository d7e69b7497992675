"""The proximal wrapper: FedProx's term round any strategy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import QV, equal, federate
from laws import loaded, toy_model, trainer

import strategies
from strategies.algebra.projection import Coordinates
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, State
from strategies.ferret import ROW
from task.training.trainer import Trainer

MU = 0.7
PROXIMAL = strategies.load_wrapper("proximal", mu=MU)


def update_of(strategy: Strategy, **settings: Any) -> Tensors:
    """What a node learns, trained as `client_app.training` trains it."""
    local = trainer(**{"learning_rate": 0.1, "local_epochs": 3, **settings})
    regularisers = tuple(wrapper.penalty for wrapper in strategy.wrappers)
    around = Trainer(local.config, local.rows, local.seed, regularisers=regularisers)
    return strategy.train(toy_model(strategy, 3, seed=2), around, Assignment(1, 3, 11, 3))[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_round_fedavg_it_is_fedprox_bit_for_bit(optimizer: str) -> None:
    wrapped = update_of(strategies.load("fedavg", [PROXIMAL]), optimizer=optimizer)
    assert equal(wrapped, update_of(strategies.load("fedprox", mu=MU), optimizer=optimizer))
    assert not equal(wrapped, update_of(strategies.load("fedavg"), optimizer=optimizer))


@pytest.mark.parametrize("name", strategies.names())
def test_without_its_weight_it_is_nothing(name: str) -> None:
    wrapped = update_of(loaded(name, [strategies.load_wrapper("proximal", mu=0.0)]))
    assert equal(wrapped, update_of(loaded(name)))


@pytest.mark.parametrize("name", strategies.names())
def test_it_holds_the_nodes_of_any_strategy_back(name: str) -> None:
    """What trains moves less from where it was; FLoRA sends what it holds, of which B moved from zero."""

    def length(update: Tensors) -> float:
        if name == "ferret":
            return float(Coordinates(*(update[part] for part in ROW)).exact().square().sum())
        return sum(float(t.square().sum()) for n, t in update.items() if name != "flora" or ".lora_A." not in n)

    rate = 0.004 if name == "fedkseed" else 0.1  # its steps are longer, by the square of a direction's norm
    held, free = loaded(name, [strategies.load_wrapper("proximal", mu=5.0)]), loaded(name)
    lengths = [length(update_of(one, optimizer="sgd", learning_rate=rate)) for one in (held, free)]
    assert lengths[0] < 0.99 * lengths[1]


def test_two_terms_add_up() -> None:
    """FedProx of 0.2 in a wrapper of 0.5 is FedProx of 0.7."""
    both = update_of(strategies.load("fedprox", [strategies.load_wrapper("proximal", mu=0.5)], mu=0.2), optimizer="sgd")
    for name, tensor in update_of(strategies.load("fedprox", mu=MU), optimizer="sgd").items():
        torch.testing.assert_close(both[name], tensor, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- federations


def run(folder: Path, strategy: str, **options: Any) -> State:
    mixed = QV | {"lora.ranks": "2,4", "learning-rate": 0.05, "strategy": strategy}
    outcome = federate(folder, mixed | {key.replace("_", "."): value for key, value in options.items()})
    assert not any(line["refused"] for entry in outcome.rounds for line in entry["nodes"])
    return outcome.state()


@pytest.mark.slow
def test_federations_of_wrapper_and_strategy_are_the_same(tmp_path: Path) -> None:
    wrapped = run(tmp_path, "fedavg", wrappers="proximal", proximal_mu=MU)
    assert equal(wrapped.tensors, run(tmp_path, "fedprox", fedprox_mu=MU).tensors)
    assert not equal(wrapped.tensors, run(tmp_path, "fedavg").tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rbla", "hetlora"])
def test_it_composes(name: str, tmp_path: Path) -> None:
    """Nodes of mixed ranks, and updates in 16 bits on top."""
    plain = run(tmp_path, name)
    held = run(tmp_path, name, wrappers="proximal,half", proximal_mu=MU)
    idle = run(tmp_path, name, wrappers="proximal", proximal_mu=0.0)
    assert equal(plain.tensors, idle.tensors)
    assert not equal(plain.tensors, held.tensors)
    assert held.rank == plain.rank == 4

"""The head of a classifier: its own learning rate, the rounds in which it trains alone, and Nesterov's momentum."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fragile import OPENING, Fragile, Killed, assert_same_run
from in_process import QV, SMALL, InProcessGrid, Outcome, equal, federate, raw_bytes, resumed, sent, suiting
from laws import toy_model, trainer

import client_app
import strategies
from client_app.permission import _steps
from client_app.policy import Policy
from server_app.config import RunConfig
from strategies.exchange import head_rounds
from strategies.exchange.compatibility import fitting_tunings, problems
from strategies.exchange.types import RunFailed, State
from strategies.protocol import wire
from task.config import HEAD_RATE, TaskConfig
from task.models.model import TunedModel, build
from task.schema import ConfigError
from task.training.rates import of_head
from task.tunings import registry as tunings

WORDS = "zero|one|two|three|four|five|six|seven|eight|nine"
NEW: dict[str, Any] = {"data.labels": WORDS}  # classes that the embedded base has no head for
HEAD = {"classifier.weight", "classifier.bias"}
ALONE = [name for name in strategies.names() if strategies.strategy_class(name).exchanges_tensors]
NOT_ALONE = [name for name in strategies.names() if name not in ALONE]


# ---------------------------------------------------------------------- its learning rate
def toy(*, new: bool = False) -> TunedModel:
    """A model of an adapter and a head, trained by 12 steps of `trainer`."""
    return replace(toy_model(strategies.load("fedavg"), 2, 3), head=frozenset({"classifier.weight"}), new_head=new)


def by_hand(model: TunedModel, settings: TaskConfig, rates: dict[str, float]) -> dict[str, np.ndarray]:
    """The tensors after `settings.local_steps` full-batch steps, each from its formula in float64.

    SGD: v <- m v + g, w <- w - eta (v, or g + m v by Nesterov). AdamW (Loshchilov and Hutter): w <- w (1 - eta lambda)
    - eta mhat / (sqrt(vhat) + 1e-8).
    """
    module = model.module.double()
    live = {name: p for name, p in module.named_parameters() if name in rates}
    inputs = trainer().rows.batch(list(range(10)), "cpu")
    batch = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    first = {name: np.zeros(p.shape) for name, p in live.items()}
    second = {name: np.zeros(p.shape) for name, p in live.items()}
    for step in range(1, settings.local_steps + 1):
        gradients = torch.autograd.grad(module(**batch).loss, list(live.values()))
        for (name, parameter), gradient in zip(live.items(), gradients, strict=True):
            g, w, rate = gradient.numpy(), parameter.detach().numpy(), rates[name]
            if settings.optimizer == "sgd":
                g = g + settings.weight_decay * w
                first[name] = settings.momentum * first[name] + g
                w -= rate * (g + settings.momentum * first[name] if settings.nesterov else first[name])
                continue
            w *= 1 - rate * settings.weight_decay
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            root = np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8
            w -= rate * first[name] / (1 - 0.9**step) / root
    return {name: parameter.detach().numpy() for name, parameter in live.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "learning_rate": 0.01, "head_rate": 7.0, "weight_decay": 0.1},
        {"optimizer": "adamw", "learning_rate": 0.01, "head_rate": 0.5},
        {"optimizer": "sgd", "learning_rate": 0.05, "head_rate": 3.0},
        {"optimizer": "sgd", "learning_rate": 0.05, "head_rate": 0.2, "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.8, "nesterov": True},
        {"optimizer": "sgd", "learning_rate": 0.05, "head_rate": 4.0, "momentum": 0.8, "nesterov": True},
    ],
)
def test_steps_are_those_of_the_formulas(settings: dict[str, Any]) -> None:
    model, run = toy(), trainer(**settings, batch_size=10, local_steps=12)
    rate, times = settings["learning_rate"], settings.get("head_rate", 1.0)
    rates = {name: rate * (times if name in model.head else 1.0) for name in model.trained}
    run.fit(model)
    wanted = by_hand(toy(), run.config, rates)
    for name, tensor in model.trained.items():
        assert torch.from_numpy(wanted[name]).allclose(tensor.detach().double(), rtol=0, atol=2e-5), name


def fitted(model: TunedModel, **settings: Any) -> dict[str, torch.Tensor]:
    trainer(learning_rate=0.01, local_steps=3, **settings).fit(model)
    return {name: tensor.detach().clone() for name, tensor in model.trained.items()}


def test_a_multiple_of_one_is_one_rate() -> None:
    assert equal(fitted(toy()), fitted(toy(), head_rate=1.0))
    assert not equal(fitted(toy()), fitted(toy(), head_rate=2.0))


def test_a_new_head_learns_at_the_tunings_multiple_and_that_of_the_base_does_not() -> None:
    assert equal(fitted(toy(new=True)), fitted(toy(), head_rate=HEAD_RATE / 0.01))  # 30 would be above the largest
    assert equal(fitted(toy(new=True), head_rate=2.0), fitted(toy(), head_rate=2.0))


@pytest.mark.parametrize("name", tunings.names())
def test_the_default_rate_of_a_new_head(name: str) -> None:
    tuning = tunings.load(name)()
    for optimizer in ("adamw", "sgd"):
        assert tuning.new_head_rate(optimizer) >= 1
        for rate in (1e-5, 1e-3, 0.05, 3.0):
            config = TaskConfig(tuning=tuning, optimizer=optimizer, learning_rate=rate)
            assert config.rate_of_head(new=False) == rate
            assert rate <= config.rate_of_head(new=True) <= max(rate, HEAD_RATE)
            assert replace(config, head_rate=5.0).rate_of_head(new=True) == 5 * rate


@pytest.mark.parametrize(("name", "rate"), [("lora", 1e-3), ("bias", 3e-3), ("full", 1e-4), ("ia3", 0.03)])
def test_the_head_rate_that_was_measured(name: str, rate: float) -> None:
    assert math.isclose(TaskConfig(tuning=tunings.load(name)(), learning_rate=rate).rate_of_head(new=True), 0.03)


def test_the_rate_of_the_head_follows_the_schedule() -> None:
    config = TaskConfig(learning_rate=1e-3, learning_rate_min=1e-4)
    rates = [replace(config, learning_rate=config.rate(round, 5)).rate_of_head(new=True) for round in range(1, 6)]
    assert rates == pytest.approx([30 * config.rate(round, 5) for round in range(1, 6)])


def test_private_steps_have_the_rate_too() -> None:
    from task.training.dp_sgd import PrivateSteps

    def trained(rate: float) -> dict[str, torch.Tensor]:
        private = PrivateSteps(noise=0.0, clip=1e9, rate=1.0, steps=2)
        run = trainer(optimizer="sgd", learning_rate=0.01, head_rate=rate, local_steps=2, batch_size=10)
        model = toy()
        before = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
        replace(run, private=private).fit(model)
        return {name: (tensor.detach() - before[name]) for name, tensor in model.trained.items()}

    once, faster = trained(1.0), trained(1.001)
    change = faster["classifier.weight"] / once["classifier.weight"]
    assert torch.allclose(change, torch.tensor(1.001), atol=2e-4)
    assert torch.allclose(faster["m0.lora_B.weight"], once["m0.lora_B.weight"], rtol=1e-3)


@pytest.mark.first(1)
@pytest.mark.parametrize("labels", ["", WORDS])
def test_a_model_knows_its_head_and_whether_it_is_new(labels: str, tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"data.labels": labels})
    for tuning in ("lora", "full", "ia3", "norm", "adapter", "head"):
        model = build(outcome.base, replace(outcome.task, tuning=tunings.load(tuning)()), 2, "cpu")
        assert (model.head, model.new_head) == (HEAD, bool(labels))
        assert model.trained.keys() >= model.head


def test_check_says_the_rate() -> None:
    said = of_head(TaskConfig(learning_rate=1e-3, head_rounds=2), new=True)
    assert said == "new, learning rate 0.03, 30 times the rest; in rounds 1 to 2 it trains alone"
    assert of_head(TaskConfig(learning_rate=0.005), new=False) == "of the base, learning rate 0.005"


# ---------------------------------------------------------------------- what cannot be
def refused(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.read({**SMALL, "num-server-rounds": 3, **options})
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nesterov": True}, "set optimizer = 'sgd' and momentum above 0"),
        ({"nesterov": True, "optimizer": "sgd"}, "set optimizer = 'sgd' and momentum above 0"),
        ({"head-rounds": 3}, "leave none of num-server-rounds = 3"),
        ({"task.kind": "causal-lm", "head-rounds": 1, "model.name": "m", "data.name": "d"}, "no classifier's head"),
        ({"task.kind": "causal-lm", "head-rate": 3.0, "model.name": "m", "data.name": "d"}, "no classifier's head"),
        ({"strategy": "fedkseed", "head-rate": 3.0, "optimizer": "sgd", "tuning": "full"}, "set head-rate = 0"),
        ({"strategy": "fedsa-lora", "head-rounds": 1, "evaluate": "nodes"}, "fedsa-lora.head = 'shared'"),
        ({"strategy": "sa-fedlora", "head-rounds": 1}, "sa-fedlora.initiating-rounds = 0"),
    ],
)
def test_what_does_not_fit_is_said_before_the_run(options: dict[str, Any], said: str) -> None:
    assert said in refused(**options)


@pytest.mark.parametrize("name", NOT_ALONE)
def test_a_strategy_without_named_tensors_has_no_head_rounds(name: str) -> None:
    config = TaskConfig(head_rounds=1, tuning=tunings.load("full")(), optimizer="sgd")
    assert any("cannot send the head alone" in problem for problem in problems(strategies.load(name), config))


def test_head_rounds_are_not_for_states_that_are_handed_over() -> None:
    config = RunConfig.read({**SMALL, "num-server-rounds": 2, "head-rounds": 1}).task
    with pytest.raises(RunFailed, match="initial_arrays"):
        strategies.load("fedavg").start(
            InProcessGrid(client_app.app, 2), wire.to_arrays(State({})), num_rounds=2, train_config=config
        )


def test_a_strategy_that_hides_the_head_is_named() -> None:
    hidden = replace(toy(), trained={})
    with pytest.raises(RunFailed, match=r"does not exchange 'classifier\.weight'"):
        head_rounds.initial(strategies.load("fedavg"), hidden, TaskConfig(head_rounds=1))


def test_the_decay_of_the_head_counts_for_a_nodes_policy() -> None:
    config = TaskConfig(learning_rate=1e-3, weight_decay=0.1, batch_size=64)
    [(kind, reason)] = _steps(replace(Policy(), max_decay=1e-3), config)
    assert (kind, reason[:40]) == ("work", "the head's learning rate x weight-decay ")
    assert not list(_steps(replace(Policy(), max_decay=1e-3), replace(config, head_rate=1.0)))


# ---------------------------------------------------------------------- head rounds
def alone(strategy: str, tuning: str, folder: Path, grid: InProcessGrid | None = None, **options: Any) -> Outcome:
    """A run of three rounds, the first two of them for the head."""
    own: dict[str, Any] = {
        "fedsa-lora": {"fedsa-lora.head": "shared"},
        "sa-fedlora": {"sa-fedlora.initiating-rounds": 0, "sa-fedlora.final-rank": 8},
    }
    common = QV | {"num-server-rounds": 3, "head-rounds": 2, "strategy": strategy, "tuning": tuning}
    return federate(folder, {**suiting(strategy), **own.get(strategy, {}), **common, **NEW, **options}, grid)


def of_round(outcome: Outcome, round: int) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """What each node was sent in a round, and its update."""
    pairs = outcome.grid.of("train")[3 * (round - 1) : 3 * round]
    return [(sent(pair.request), sent(pair.reply)) for pair in pairs]


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("strategy", "tuning"), [(n, "lora" if "lora" in fitting_tunings(strategies.load(n)) else "bias") for n in ALONE]
)
def test_in_head_rounds_the_head_alone_is_sent_and_moves(strategy: str, tuning: str, tmp_path: Path) -> None:
    outcome = alone(strategy, tuning, tmp_path)
    model = build(outcome.base, outcome.task, 8, "cpu")
    initial = outcome.run.strategy.initial(model).tensors
    for round in (1, 2):
        for down, up in of_round(outcome, round):
            assert down.keys() & initial.keys() == up.keys() == HEAD  # scaffold sends controls too
            assert all(bool(delta.any()) for delta in up.values())
            assert raw_bytes(up) == 4 * (64 * 10 + 10)
    begun = of_round(outcome, 3)
    for down, up in begun:
        assert down.keys() > HEAD or strategy == "flora"
        assert up.keys() > HEAD
        for name in down.keys() & initial.keys() - HEAD:  # nothing but the head has moved before
            assert torch.equal(down[name], initial[name][tuple(map(slice, down[name].shape))]), name
    assert outcome.state().tensors.keys() == initial.keys()
    assert not any(name.startswith(head_rounds.RESTING) for name in outcome.state().server)


@pytest.mark.slow
def test_sa_fedlora_may_begin_its_initiating_rounds_with_the_head(tmp_path: Path) -> None:
    outcome = alone("sa-fedlora", "lora", tmp_path, **{"sa-fedlora.initiating-rounds": 2, "head-rounds": 1})
    sizes = [len(down) for round in (1, 2, 3) for down, _ in of_round(outcome, round)[:1]]
    model = build(outcome.base, outcome.task, 8, "cpu")
    assert sizes == [len(HEAD), len(model.frozen) + len(HEAD), len(model.trained)]
    assert outcome.state().tensors.keys() == model.trained.keys()


@pytest.mark.slow
def test_head_rounds_are_rounds_of_the_head_tuning(tmp_path: Path) -> None:
    """The body is the base, so what the head learns is what it learns under tuning = 'head', bit for bit."""
    rates = {"learning-rate": 0.01, "head-rate": 1.0}
    full, head = (alone("fedavg", tuning, tmp_path / tuning, **rates) for tuning in ("full", "head"))
    for round in (1, 2):
        for one, other in zip(of_round(full, round), of_round(head, round), strict=True):
            assert equal(one[0], other[0])
            assert equal(one[1], other[1])
    assert [line["loss"] for line in full.rounds[:3]] == [line["loss"] for line in head.rounds[:3]]
    assert full.rounds[3]["loss"] != head.rounds[3]["loss"]


@pytest.mark.slow
def test_without_head_rounds_everything_trains_at_once(tmp_path: Path) -> None:
    outcome = alone("fedavg", "lora", tmp_path, **{"head-rounds": 0})
    assert all(down.keys() == up.keys() and up.keys() > HEAD for down, up in of_round(outcome, 1))


@pytest.mark.slow
@pytest.mark.usefixtures("dead_servers_write_no_summary")
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_that_dies_after_a_head_round_goes_on_bit_for_bit(rounds: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"server-optimizer": "adam", "wrappers": "quantize"}
    uninterrupted = alone("rbla", "lora", tmp_path / "whole", **options)
    with pytest.raises(Killed):
        alone("rbla", "lora", tmp_path / "killed", grid=Fragile(looks=OPENING + rounds), **options)
    other = resumed((tmp_path / "killed" / "latest").resolve())
    assert_same_run(uninterrupted, other)
    assert equal(uninterrupted.state().server, other.state().server)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["central-privacy", "local-privacy", "example-privacy", "top-k", "median"])
def test_wrappers_see_the_head_alone(wrapper: str, tmp_path: Path) -> None:
    own = {"central-privacy.sampling": "fixed", "optimizer": "sgd"}
    outcome = alone("fedavg", "lora", tmp_path, wrappers=wrapper, **own)
    assert outcome.summary["status"] == "completed"
    for round, tensors in ((1, 2), (2, 2), (3, len(outcome.state().tensors))):
        line = outcome.rounds[round]
        assert not line.get("failed")
        assert not any(node["refused"] for node in line["nodes"])
        assert all(len(down) == tensors for down, _ in of_round(outcome, round))

"""FedKSeed against finite differences and dense sums in float64."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Matrix, columns
from in_process import federate, suiting
from laws import toy_model, trainer

import strategies
from server_app.config import RunConfig
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import BASES
from strategies.algebra.tensors import Tensors, snapshot
from strategies.exchange.types import Assignment, State, Update
from strategies.fedkseed import AMPLITUDES, CHANCES, DRAWS, NUMBERS, SCALE, TOTALS, FedKSeed
from strategies.protocol import wire
from strategies.protocol.journal import held
from task.models.model import TunedModel, build, kept_model
from task.schema import ConfigError
from task.seeds import derive
from task.training.batches import batches
from task.training.trainer import Trainer

ASSIGNMENT = Assignment(1, 3, 11, 0)
DIRECTIONS = 8


def fedkseed(**options: object) -> FedKSeed:
    chosen = strategies.load("fedkseed", **({"directions": DIRECTIONS, "block": 256, "epsilon": 0.01} | options))
    assert isinstance(chosen, FedKSeed)
    return chosen


def vector(tensors: Tensors) -> Matrix:
    return np.concatenate([tensors[name].detach().double().numpy().reshape(-1) for name in sorted(tensors)])


def directions(strategy: FedKSeed, model: TunedModel) -> Matrix:
    """z_1 ... z_K as columns (d, K)."""
    seed, total = derive(model.config.seed, "directions"), len(vector(model.trained))
    parts = [
        columns(strategy.basis, Seeds(seed, seed), start, strategy.block, strategy.directions)
        for start in range(0, total, strategy.block)
    ]
    return np.concatenate(parts)[:total] * BASES[strategy.basis].deviation(strategy.block)


def installed(strategy: FedKSeed, model: TunedModel, state: State) -> TunedModel:
    strategy.install(model, strategy.start_of(state, ASSIGNMENT))
    return model


def after(strategy: FedKSeed, totals: list[float]) -> State:
    """A state in which rounds have come to these totals; directions of even numbers were drawn, with growing slopes."""
    drawn = torch.arange(DIRECTIONS, dtype=torch.float64)
    values = {TOTALS: torch.tensor(totals, dtype=torch.float64), AMPLITUDES: drawn**2, DRAWS: (drawn + 1) % 2}
    return State({name: values[name] for name in strategy.initial(toy_model(strategy, 1, 2)).tensors})


# ---------------------------------------------------------------------- the node


def walked(strategy: FedKSeed, model: TunedModel, local: Trainer, chances: Matrix) -> tuple[Tensors, float]:
    """Totals and amplitudes by direction, and the mean loss: every step by hand."""
    module, names = copy.deepcopy(model.module).double(), sorted(model.trained)
    own = dict(module.named_parameters())
    z, place, random = directions(strategy, model), vector(model.trained), np.random.default_rng(ASSIGNMENT.seed)
    found = {name: torch.zeros(DIRECTIONS, dtype=torch.float64) for name in (TOTALS, AMPLITUDES, DRAWS)}
    losses: list[float] = []

    def loss_at(values: Matrix, positions: torch.Tensor) -> float:
        parts = torch.split(torch.from_numpy(values), [own[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            own[name].data = part.view(own[name].shape)
        batch = local.rows.batch(positions, "cpu")
        losses.append(float(module(batch["pixel_values"].double(), batch["labels"]).loss))
        return losses[-1]

    for positions in batches(local.config, len(local.rows), local.seed):
        k = random.choice(DIRECTIONS, p=chances)
        ahead, behind = (loss_at(place + side * strategy.epsilon * z[:, k], positions) for side in (1, -1))
        slope = (ahead - behind) / (2 * strategy.epsilon)
        place = place - local.config.learning_rate * slope * z[:, k]
        for name, learned in ((TOTALS, -local.config.learning_rate * slope), (AMPLITUDES, abs(slope)), (DRAWS, 1.0)):
            found[name][k] += learned
    return found, float(np.mean(losses))


@pytest.mark.parametrize("basis", sorted(BASES))
@pytest.mark.parametrize("pro", [False, True])
def test_steps_are_finite_differences(basis, pro):
    strategy, local = fedkseed(basis=basis, pro=pro), trainer(learning_rate=0.05, optimizer="sgd")
    state = after(strategy, [0.1, 0.0, -0.2, 0.0, 0.3, 0.0, 0.0, 0.05])
    model = installed(strategy, toy_model(strategy, 1, 2), state)
    chances = model.replay_state[CHANCES].double().numpy() if pro else np.ones(DIRECTIONS)
    expected, loss = walked(strategy, model, local, chances / chances.sum())
    update, metrics = strategy.train(model, local, ASSIGNMENT)
    assert update.keys() == state.tensors.keys()
    for name, tensor in update.items():
        torch.testing.assert_close(tensor, expected[name].float(), rtol=2e-3, atol=2e-4)
    assert update[TOTALS].any()
    assert metrics["steps"] == 9
    assert metrics["train-loss"] == pytest.approx(loss, rel=1e-4)


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("basis", sorted(BASES))
def test_the_model_is_the_base_and_the_totals(basis):
    strategy = fedkseed(basis=basis)
    totals = [0.1, 0.0, -0.2, 0.4, 0.3, 0.0, 1.0, 0.05]
    model = toy_model(strategy, 1, 2)
    expected = vector(model.trained) + directions(strategy, model) @ totals
    for _ in range(2):  # whatever the model held before
        installed(strategy, model, after(strategy, totals))
        np.testing.assert_allclose(vector(model.trained), expected, rtol=0, atol=DIRECTIONS / 32767)
        strategy.train(model, trainer(learning_rate=0.05), ASSIGNMENT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_model_is_rebuilt_in_32_bits(dtype):
    """A base of 1 and totals too small for it one by one: their sum is rounded once."""
    strategy = fedkseed()
    model = toy_model(strategy, 1, 2)
    model.initial_values = {name: torch.ones_like(tensor) for name, tensor in model.initial_values.items()}
    for tensor in model.trained.values():
        tensor.data = tensor.data.to(dtype)
    small = float(torch.finfo(dtype).eps) / 4
    installed(strategy, model, after(strategy, [small] * DIRECTIONS))
    exact = torch.from_numpy(1 + directions(strategy, model) @ ([small] * DIRECTIONS))
    found = torch.cat([model.trained[name].detach().flatten() for name in sorted(model.trained)])
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))
    assert (found != 1).any()
    assert all(tensor.dtype == torch.float32 for tensor in model.initial_values.values())


@pytest.mark.slow
def test_server_and_nodes_have_the_same_bits_after_rounds(tmp_path: Path) -> None:
    options = {"strategy": "fedkseed", "num-server-rounds": 3, "local-steps": 4, "learning-rate": 1e-4}
    outcome = federate(tmp_path, suiting("fedkseed") | options | {"fedkseed.block": 256})
    strategy, state = outcome.run.strategy, outcome.state()
    assert isinstance(strategy, FedKSeed)
    assert state.tensors[TOTALS].any()
    kept_model.cache_clear()
    server = snapshot(held(strategy, outcome.base, outcome.task, state).trained)
    fresh = build(outcome.base, outcome.task, 0, "cpu")
    total = directions(strategy, fresh) @ state.tensors[TOTALS].numpy()
    np.testing.assert_allclose(vector(server), vector(fresh.trained) + total, rtol=0, atol=1e-5)
    assert np.abs(total).max() > 1e-3
    used = build(outcome.base, outcome.task, 0, "cpu")  # a node that has served all rounds
    for exchange in outcome.grid.of("train"):
        strategy.install(used, wire.unpack(exchange.request))
    torch.set_num_threads(2)
    try:
        strategy.install(used, strategy.start_of(state, ASSIGNMENT))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(used.trained[name], tensor) for name, tensor in server.items())


# ---------------------------------------------------------------------- the server


def test_totals_of_two_nodes_are_averaged_by_rows():
    strategy = fedkseed()
    one, other = (torch.randn(DIRECTIONS, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    updates = [Update(str(n), ASSIGNMENT, {TOTALS: t}, w) for n, (t, w) in enumerate([(one, 3.0), (other, 1.0)])]
    state = after(strategy, [0.5] * DIRECTIONS)
    found = strategy.apply(state, strategy.combine(state, updates), 1).tensors[TOTALS]
    torch.testing.assert_close(found, 0.5 + 0.75 * one.double() + 0.25 * other.double())


def test_totals_go_down_as_integers_of_one_scale():
    strategy = fedkseed()
    totals = [0.1, 0.0, -0.2, 0.4, 0.3, 0.0, 1.0, 0.05]
    start = strategy.start_of(after(strategy, totals), ASSIGNMENT).tensors
    assert start.keys() == {NUMBERS, SCALE}
    assert start[NUMBERS].dtype == torch.int16
    np.testing.assert_allclose(start[NUMBERS].double() * start[SCALE].double(), totals, rtol=0, atol=0.5 / 32767)


def test_chances_follow_the_slopes():
    """softmax of mean |g|, stretched to [0, 1]; directions never drawn count as the mean."""
    state = after(fedkseed(pro=True), [0.0] * DIRECTIONS)  # even ones were drawn: 0, 4, 16, 36
    mean = np.array([0.0, 14.0, 4.0, 14.0, 16.0, 14.0, 36.0, 14.0])
    stretched = np.exp((mean - mean.min()) / (mean.max() - mean.min()))
    start = fedkseed(pro=True).start_of(state, ASSIGNMENT).tensors
    np.testing.assert_allclose(start[CHANCES].numpy(), stretched / stretched.sum(), rtol=1e-6)


@pytest.mark.parametrize("amplitude", [0.0, 2.0])
def test_chances_are_equal_where_nothing_is_known_or_all_is_alike(amplitude):
    strategy = fedkseed(pro=True)
    state = strategy.initial(toy_model(strategy, 1, 2))
    known = state.tensors | {name: torch.full((DIRECTIONS,), amplitude).double() for name in (AMPLITUDES, DRAWS)}
    assert strategy.start_of(State(known), ASSIGNMENT).tensors[CHANCES].tolist() == [1 / DIRECTIONS] * DIRECTIONS


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adamw"}, "'fedkseed' has no gradients: set optimizer = 'sgd'"),
        ({"momentum": 0.9}, "without momentum, decay or clipping"),
        ({"weight-decay": 0.1}, "without momentum, decay or clipping"),
        ({"max-grad-norm": 1.0}, "without momentum, decay or clipping"),
        ({"fedkseed.block": 300}, "fedkseed.block = 300 is not a power of two"),
        ({"fedkseed.block": 256, "fedkseed.directions": 257}, "directions = 257 are more than fedkseed.block = 256"),
        ({"tuning": "lora"}, "needs tuning = 'bias' or 'full' or 'head', not 'lora'"),
    ],
)
def test_settings_that_do_not_fit_are_said(options, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig.read({"strategy": "fedkseed", "tuning": "full", "optimizer": "sgd"} | options)

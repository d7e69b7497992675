"""SLoRA: the mask, training on it against a dense loop, the hand-over, and whole federations."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import exported
from hypothesis import given
from hypothesis import strategies as st
from in_process import QV, equal, federate, sent
from laws import FACTORS, INPUTS, OUTPUTS, WEIGHT, Plan, nothing_of, scene, toy_model, trainer
from matrices import product, singular_values
from tiers import examples

from strategies.algebra.lowrank import modules
from strategies.algebra.tensors import Tensors
from strategies.exchange.compatibility import problems
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, State
from strategies.protocol.journal import held
from strategies.slora import BASE, SCALING, SLora, _places
from task.config import TaskConfig
from task.data.prepared import prepare
from task.models.model import TunedModel, build
from task.storage.store import server_store

EXAMPLES = examples(40)
HALF = SLora(density=0.5)
FIRST = Assignment(1, 5, 11, 3)


def mask(strategy: SLora) -> torch.Tensor:
    return strategy._mask(WEIGHT, OUTPUTS * INPUTS)


# ---------------------------------------------------------------------- the mask


@EXAMPLES
@given(st.integers(0, 2**62), st.integers(1, 3000), st.floats(1e-3, 1.0))
def test_places_are_different_ascending_and_as_many_as_asked(seed: int, size: int, density: float) -> None:
    count = math.ceil(density * size)
    places = _places(seed, size, count)
    assert len(places) == count
    assert bool((places.diff() > 0).all())
    assert 0 <= int(places[0]) <= int(places[-1]) < size
    assert torch.equal(places, _places(seed, size, count))


def test_places_are_spread_evenly_and_do_not_change() -> None:
    counts = np.bincount(np.concatenate([_places(seed, 50, 5).numpy() for seed in range(2000)]), minlength=50)
    assert abs(counts - 200).max() < 5 * math.sqrt(200)
    assert _places(7, 20, 4).tolist() == [0, 2, 12, 15]


def test_the_mask_depends_on_key_and_layer() -> None:
    one, other = SLora(density=0.5), SLora(density=0.5, key=1)
    assert torch.equal(mask(one), mask(HALF))
    assert not torch.equal(mask(one), mask(other))
    assert not torch.equal(one._mask("m1.weight", 20), one._mask("m2.weight", 20))


# ---------------------------------------------------------------------- training on it


def installed(strategy: Strategy, seed: int = 2) -> tuple[TunedModel, State]:
    state = strategy.initial(toy_model(strategy, 3, seed))
    model = toy_model(strategy, 3, seed)
    strategy.install(model, strategy.start_of(state, FIRST))
    return model, state


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_node_trains_as_a_dense_loop_that_masks_after_every_step(optimizer: str, clip: float) -> None:
    local = trainer(
        optimizer=optimizer, learning_rate=0.1, weight_decay=0.3, local_epochs=3, batch_size=10, max_grad_norm=clip
    )
    model, _ = installed(HALF)
    delta, _ = HALF.train(model, local, FIRST)
    dense = toy_model(HALF, 3, 2)
    weight, head = dense.frozen[WEIGHT], dense.trained["classifier.weight"]
    weight.requires_grad_(True)
    before = {WEIGHT: weight.detach().clone(), "classifier.weight": head.detach().clone()}
    inside = torch.zeros(OUTPUTS * INPUTS, dtype=torch.bool)
    inside[mask(HALF)] = True
    inside = inside.view(OUTPUTS, INPUTS)
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    steps = kind([weight, head], lr=0.1, weight_decay=0.3)
    for _ in range(3):
        loss = dense.module(**local.rows.batch(range(10))).loss
        steps.zero_grad()
        loss.backward()
        assert weight.grad is not None
        weight.grad.mul_(inside)
        if clip:
            torch.nn.utils.clip_grad_norm_([weight, head], clip)
        steps.step()
        weight.data = torch.where(inside, weight.detach(), before[WEIGHT])
    torch.testing.assert_close(delta[WEIGHT], (weight.detach() - before[WEIGHT])[inside], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        delta["classifier.weight"], head.detach() - before["classifier.weight"], rtol=1e-4, atol=1e-6
    )
    if optimizer == "adamw":  # without the mask, decay would have moved the rest
        assert float(delta[WEIGHT].abs().min()) > 0


def test_nothing_outside_the_mask_moves_and_the_module_is_as_it_was() -> None:
    model, state = installed(HALF)
    module, weight = model.module.get_submodule("m0"), model.frozen[WEIGHT]
    before, kind, names = weight.detach().clone(), type(module), [n for n, _ in model.module.named_parameters()]
    delta, _ = HALF.train(model, trainer(weight_decay=0.5), FIRST)
    flat = torch.zeros(OUTPUTS * INPUTS)
    flat[mask(HALF)] = delta[WEIGHT]
    changed = weight.detach() != before
    assert torch.equal(changed, flat.view(OUTPUTS, INPUTS) != 0)
    assert (module.weight is weight, type(module), [n for n, _ in model.module.named_parameters()]) == (
        True, kind, names
    )  # fmt: skip
    assert model.changed == {WEIGHT}
    assert delta.keys() == HALF.expected(state, FIRST).keys() == {WEIGHT, "classifier.weight"}
    HALF.install(model, HALF.start_of(state, FIRST))
    assert torch.equal(weight.detach(), before)


def test_a_layer_whose_weight_is_inputs_by_outputs_has_the_same_mask() -> None:
    model, _ = installed(HALF)
    model.transposed = frozenset({WEIGHT})
    entries = HALF._entries(model)[WEIGHT]
    assert torch.equal(entries, model.frozen[WEIGHT].detach().T.flatten()[mask(HALF)])
    HALF._write(model, WEIGHT, entries + 1)
    assert torch.equal(HALF._entries(model)[WEIGHT], entries + 1)


# ---------------------------------------------------------------------- the hand-over


def trained(strategy: SLora, scaling: float = 2.0, seed: int = 0) -> tuple[State, torch.Tensor]:
    """A state after sparse rounds, and D as a matrix."""
    drawn = scene(strategy, Plan((3, 3, 3), (0, 1, 2), (1, 4, 2), seed))
    state = drawn.next()
    state = replace(state, server=state.server | {SCALING: torch.tensor(scaling, dtype=torch.float64)})
    change = torch.zeros(OUTPUTS * INPUTS, dtype=torch.float64)
    change[mask(strategy)] = state.tensors[WEIGHT].double() - state.server[BASE + WEIGHT].double()
    return state, change.view(OUTPUTS, INPUTS)


@EXAMPLES
@given(st.integers(0, 2**20), st.sampled_from([0.05, 0.3, 1.0]))
def test_the_adapters_are_the_best_of_their_rank(seed: int, density: float) -> None:
    state, change = trained(strategy := SLora(density=density), seed=seed)
    after = strategy.begin(state, 4, 3)
    s = singular_values(change.numpy())
    off = np.linalg.norm(change.numpy() - 2.0 * product(after.tensors))
    assert off == pytest.approx(math.sqrt((s[3:] ** 2).sum()), abs=1e-5)
    assert after.tensors.keys() == {*FACTORS, "classifier.weight"}
    assert not after.server
    assert torch.equal(after.tensors["classifier.weight"], state.tensors["classifier.weight"])
    assert equal(strategy.begin(after, 5, 3).tensors, after.tensors)


def test_a_change_of_low_rank_is_kept_whole() -> None:
    few = SLora(density=0.1)  # two entries: rank 2 at most
    state, change = trained(few)
    np.testing.assert_allclose(2.0 * product(few.begin(state, 4, 3).tensors), change.numpy(), rtol=0, atol=1e-6)


def test_without_a_change_the_adapters_start_as_drawn() -> None:
    drawn = scene(HALF, Plan((3, 3), (0, 1), (1, 4), 8))
    state = drawn.next([replace(update, delta=nothing_of(update.delta)) for update in drawn.updates])
    after = HALF.begin(state, 4, 3).tensors
    fresh = {name: tensor.detach() for name, tensor in toy_model(HALF, 3, 8).trained.items()}
    assert equal(after, fresh)


def test_before_the_last_sparse_round_nothing_is_handed_over() -> None:
    state, _ = trained(HALF)
    same = HALF.begin(state, HALF.sparse_rounds, 3)
    assert equal(same.tensors, state.tensors)
    assert equal(same.server, state.server)


# ---------------------------------------------------------------------- federations


def test_a_start_of_another_kind_is_refused() -> None:
    config = TaskConfig.read({"lora.init": "pissa"})
    assert any("finds where adapters start" in problem for problem in problems(SLora(), config))
    assert not problems(SLora(sparse_rounds=0), config)


@pytest.mark.slow
def test_without_sparse_rounds_it_is_fedavg(tmp_path: Path) -> None:
    rounds = QV | {"num-server-rounds": 2}
    ours = federate(tmp_path / "ours", rounds | {"strategy": "slora", "slora.sparse-rounds": 0})
    theirs = federate(tmp_path / "theirs", rounds)
    assert equal(ours.state().tensors, theirs.state().tensors)
    assert [line["bytes_up"] for line in ours.rounds[1:]] == pytest.approx(
        [line["bytes_up"] for line in theirs.rounds[1:]], rel=1e-3
    )


@pytest.mark.slow
def test_as_a_federation(tmp_path: Path) -> None:
    """The masked entries alone travel, then the adapters; they fit the base as it was."""
    options = {"strategy": "slora", "slora.sparse-rounds": 2, "slora.density": 0.05, "num-server-rounds": 3}
    run = federate(tmp_path, QV | options)
    model = build(run.base, run.task, 8, "cpu")
    layers = modules(model.trained)
    count = math.ceil(0.05 * model.frozen[f"{layers[0]}.weight"].numel())
    for number, exchange in enumerate(run.grid.of("train")):
        for tensors in (sent(exchange.request), sent(exchange.reply)):
            own = {n: t for n, t in tensors.items() if not n.startswith("classifier")}
            if number < 6:
                assert {name: tuple(tensor.shape) for name, tensor in own.items()} == {
                    f"{layer}.weight": (count,) for layer in layers
                }
            else:
                assert len(own) == 16
                assert modules(own) == layers
    whole = handed_over(run.grid.of("train")[6].request)
    assert all(float(matrix.norm()) > 0 for matrix in whole.values())
    assert not run.state().journal
    assert not (run.folder / "model" / "last" / "base").exists()
    batch = prepare(run.task, run.base.folder, server_store()).test.batch(torch.arange(20), "cpu")
    held_model = held(run.run.strategy, run.base, run.task, run.state()).module
    with torch.no_grad():
        assert torch.equal(exported(run, "last")(**batch).logits, held_model.eval()(**batch).logits)
    assert all(not line["refused"] for number in (1, 2, 3) for line in run.rounds[number]["nodes"])


def handed_over(request: object) -> Tensors:
    """The products that the first round of adapters starts from."""
    tensors = sent(request)
    return {m: tensors[f"{m}.lora_B.weight"] @ tensors[f"{m}.lora_A.weight"] for m in modules(tensors)}

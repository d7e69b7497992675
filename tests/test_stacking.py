"""FLoRA and FedEx-LoRA against the equations of their papers, as matrices in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from laws import FACTORS, INPUTS, OUTPUTS, WEIGHT, Plan, Scene, merged, plans, scene, toy_model, trainer
from matrices import Matrix, product, singular_values
from tiers import examples

import strategies
from strategies.algebra.lowrank import non_lora
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment, Entry, State
from strategies.flora import _drawn

CLOSE = 1e-5  # float32 factors of size 1
EXAMPLES = examples(60)
FLORA, FEDEX = strategies.load("flora"), strategies.load("fedex-lora")
HEAD = "classifier.weight"


def shares(drawn: Scene) -> list[float]:
    """p_i = n_i / n."""
    rows = sum(update.weight for update in drawn.updates)
    return [update.weight / rows for update in drawn.updates]


def stacked(drawn: Scene) -> Matrix:
    """[B_1 .. B_N] [p_1 A_1; ..; p_N A_N] of what the nodes sent: FLoRA's equation."""
    pairs = [[update.delta[name].double().numpy() for name in FACTORS] for update in drawn.updates]
    left = np.concatenate([b for b, _ in pairs], axis=1)
    right = np.concatenate([p * a for p, (_, a) in zip(shares(drawn), pairs, strict=True)], axis=0)
    return np.asarray(left @ right)


def averages(drawn: Scene) -> dict[str, Matrix]:
    """sum_i p_i x_i of the factors after training."""
    result: dict[str, Matrix] = {}
    for name in FACTORS:
        start = drawn.state.tensors[name].double().numpy()
        trained = [start + update.delta[name].double().numpy() for update in drawn.updates]
        result[name] = np.sum([p * t for p, t in zip(shares(drawn), trained, strict=True)], axis=0)
    return result


def residual(drawn: Scene) -> Matrix:
    """sum_i p_i B_i A_i - B A, with the averages B and A: FedEx-LoRA's equation."""
    products = []
    for update in drawn.updates:
        b, a = (drawn.state.tensors[n].double().numpy() + update.delta[n].double().numpy() for n in FACTORS)
        products.append(b @ a)
    mean = np.sum([p * m for p, m in zip(shares(drawn), products, strict=True)], axis=0)
    b, a = (averages(drawn)[name] for name in FACTORS)
    return np.asarray(mean - b @ a)


def added_to_the_base(after: State) -> Matrix:
    return np.asarray(merged(after.journal).get(WEIGHT, torch.zeros(OUTPUTS, INPUTS)).numpy())


def assert_head_is_averaged(drawn: Scene, after: State) -> None:
    change = sum(p * u.delta[HEAD].double() for p, u in zip(shares(drawn), drawn.updates, strict=True))
    head = drawn.state.tensors[HEAD].double() + change
    torch.testing.assert_close(after.tensors[HEAD].double(), head, rtol=0.0, atol=CLOSE)


# ---------------------------------------------------------------------- the rules


@EXAMPLES
@given(plans())
def test_flora_puts_the_stack_into_the_base(plan):
    drawn = scene(FLORA, plan)
    after = drawn.next()
    assert {update.delta[FACTORS[1]].shape[0] for update in drawn.updates} == {plan.budgets[i] for i in plan.cohort}
    np.testing.assert_allclose(added_to_the_base(after), stacked(drawn), rtol=0, atol=CLOSE)
    assert_head_is_averaged(drawn, after)


@EXAMPLES
@given(plans())
def test_fedex_lora_averages_factors_and_puts_the_rest_into_the_base(plan):
    drawn = scene(FEDEX, plan)
    after = drawn.next()
    for name, average in averages(drawn).items():
        np.testing.assert_allclose(after.tensors[name].double().numpy(), average, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(added_to_the_base(after), residual(drawn), rtol=0, atol=CLOSE)
    assert_head_is_averaged(drawn, after)


@EXAMPLES
@given(plans())
def test_rounds_add_up(plan):
    """Two rounds of FLoRA: two entries, in order, and the base has both stacks."""
    drawn = scene(FLORA, plan)
    once = drawn.next()
    twice = replace(drawn, state=once)
    after = FLORA.apply(once, FLORA.combine(once, iter(twice.updates)), 2)
    assert [entry.round for entry in after.journal] == [1, 2]
    assert after.journal[0] is once.journal[0]
    np.testing.assert_allclose(added_to_the_base(after), 2 * stacked(drawn), rtol=0, atol=2 * CLOSE)


# ---------------------------------------------------------------------- the form of an entry


@pytest.mark.parametrize(("strategy", "reference"), [(FLORA, stacked), (FEDEX, residual)], ids=["flora", "fedex-lora"])
@EXAMPLES
@given(plan=plans())
def test_an_entry_is_factors_or_a_matrix_whichever_is_smaller(strategy, reference, plan):
    drawn = scene(strategy, plan)
    s = singular_values(reference(drawn))
    size = np.linalg.norm(averages(drawn)[FACTORS[0]]) if strategy is FEDEX else s[0]
    assume(not any(1e-9 < value / max(size, 1.0) < 1e-3 for value in s))  # rank is clear
    rank = int((s > 1e-4 * max(size, 1.0)).sum())
    journal = drawn.next().journal
    if not rank:
        assert not journal
        return
    (entry,) = journal
    if rank * (OUTPUTS + INPUTS) < OUTPUTS * INPUTS:
        shapes = {FACTORS[0]: (OUTPUTS, rank), FACTORS[1]: (rank, INPUTS)}
    else:
        shapes = {WEIGHT: (OUTPUTS, INPUTS)}
    assert {name: tuple(tensor.shape) for name, tensor in entry.tensors.items()} == shapes
    assert all(tensor.dtype == torch.float32 for tensor in entry.tensors.values())


@pytest.mark.parametrize("strategy", [FLORA, FEDEX], ids=lambda strategy: strategy.name)
@EXAMPLES
@given(plan=plans())
def test_nothing_learned_is_no_entry(strategy, plan):
    drawn = scene(strategy, plan)
    nothing = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]
    assert not drawn.next(nothing).journal


@EXAMPLES
@given(plan=plans())
def test_nodes_that_agree_leave_no_residual(plan):
    drawn = scene(FEDEX, plan)
    alike = [replace(update, delta=drawn.updates[0].delta) for update in drawn.updates]
    assert not drawn.next(alike).journal


def test_one_layer_that_learned_is_an_entry_of_one_layer():
    """FLoRA with two modules, of which one node learned in the first alone."""
    names = [f"m{i}.lora_{factor}.weight" for i in range(2) for factor in "BA"]
    shapes = {name: (OUTPUTS, 2) if "lora_B" in name else (2, INPUTS) for name in names}
    drawn = scene(FLORA, Plan((2,), (0,), (3,), 1))
    state = State({name: torch.zeros(shape) for name, shape in shapes.items()})
    delta = {
        name: torch.ones(shape) if name != "m1.lora_B.weight" else torch.zeros(shape) for name, shape in shapes.items()
    }
    update = replace(drawn.updates[0], delta=delta)
    (entry,) = FLORA.apply(state, FLORA.combine(state, [update]), 1).journal
    assert entry.tensors.keys() == {"m0.lora_B.weight", "m0.lora_A.weight"}


# ---------------------------------------------------------------------- the node's half


@pytest.mark.parametrize("strategy", [FLORA, FEDEX], ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("form", ["factors", "matrix"])
def test_a_replay_adds_the_scaled_product_to_the_frozen_weight(strategy, form):
    b, a = torch.randn(OUTPUTS, 2), torch.randn(2, INPUTS)
    tensors = dict(zip(FACTORS, (b, a), strict=True)) if form == "factors" else {WEIGHT: b @ a}
    model = toy_model(strategy, 3, seed=2)
    before = {name: tensor.detach().double().clone() for name, tensor in model.frozen.items()}
    kept = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
    strategy.replay(model, Entry(1, 0, tensors))
    expected = before[WEIGHT] + model.config.tuning.product_scale() * (b.double() @ a.double())
    torch.testing.assert_close(model.frozen[WEIGHT].detach().double(), expected, rtol=1e-6, atol=CLOSE)
    assert torch.equal(model.frozen["m0.bias"].detach().double(), before["m0.bias"])
    assert all(torch.equal(model.trained[name].detach(), tensor) for name, tensor in kept.items())


def test_a_flora_node_begins_with_a_new_adapter_of_its_rank():
    """Whatever is in the model: A within peft's bound and from the ticket's seed, B zero; it sends all of it."""
    sent: list[Tensors] = []
    for seed, left in ((7, 1.0), (7, 2.0), (8, 1.0)):
        model = toy_model(FLORA, 3, seed=2)
        model.write({name: torch.full_like(tensor, left) for name, tensor in model.trained.items() if name in FACTORS})
        delta, _ = FLORA.train(model, trainer(learning_rate=0.0), Assignment(1, 3, seed, 2))
        sent.append(delta)
        assert not delta[FACTORS[0]].any()
        assert delta[FACTORS[0]].shape == (OUTPUTS, 2)
        assert 0 < float(delta[FACTORS[1]].abs().max()) <= 1 / np.sqrt(INPUTS)
        assert not delta[HEAD].any()
    assert torch.equal(sent[0][FACTORS[1]], sent[1][FACTORS[1]])
    assert not torch.equal(sent[0][FACTORS[1]], sent[2][FACTORS[1]])


def test_a_drawn_a_has_the_spread_of_pefts():
    """Uniform within 1 / sqrt(inputs): peft's Kaiming initialisation with a = sqrt 5."""
    import math

    a = _drawn({FACTORS[1]: torch.empty(64, 400)}, seed=3)[FACTORS[1]]
    peft = torch.empty(64, 400)
    torch.nn.init.kaiming_uniform_(peft, a=math.sqrt(5), generator=torch.Generator().manual_seed(1))
    assert float(a.abs().max()) == pytest.approx(float(peft.abs().max()), rel=1e-2)
    assert float(a.std()) == pytest.approx(float(peft.std()), rel=2e-2)


@EXAMPLES
@given(plan=plans())
def test_what_a_flora_node_is_sent_has_no_factors(plan):
    drawn = scene(FLORA, plan)
    for update in drawn.updates:
        start = FLORA.start_of(drawn.next(), update.assignment)
        assert start.tensors.keys() == non_lora(drawn.state.tensors).keys()
        assert product(FLORA.trained(drawn.state, update)).shape == (OUTPUTS, INPUTS)


def test_adapters_that_flora_is_handed_go_into_the_base():
    drawn = scene(FLORA, Plan((3, 2), (0, 1), (1, 4), 8))
    trained = {
        name: torch.randn(t.shape, generator=torch.Generator().manual_seed(3))
        for name, t in drawn.state.tensors.items()
    }
    handed = State(trained)
    begun = FLORA.begin(handed, 1, 3)
    b, a = (trained[name].double() for name in FACTORS)
    torch.testing.assert_close(merged(begun.journal)[WEIGHT].double(), b @ a, rtol=0.0, atol=CLOSE)
    assert not begun.tensors[FACTORS[0]].any()
    assert torch.equal(begun.tensors[HEAD], trained[HEAD])
    assert FLORA.begin(begun, 2, 3) is begun  # once
    assert FLORA.begin(drawn.state, 1, 3) is drawn.state  # fresh ones stand for nothing

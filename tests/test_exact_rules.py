"""FlexLoRA, FFA-LoRA and RoLoRA against their papers, on matrices and as real federations."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from in_process import QV, Outcome, equal, federate, raw_bytes, sent
from laws import FACTORS, INPUTS, LAWS, OUTPUTS, Plan, plans, scene, toy_model, trainer
from matrices import Matrix, assert_orthonormal, mean_product, product, singular_values, tail
from safetensors.torch import load_file
from tiers import examples

import strategies
from strategies.algebra.lowrank import modules, rank_axis
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import EXACT
from strategies.exchange.types import Assignment, State
from task.models.model import build

CLOSE = 1e-5  # float32 factors of size 1
EXAMPLES = examples(60)
FLEX, ROLORA = strategies.load("flex-lora"), strategies.load("rolora")


def node(rank: int, round: int = 1) -> Assignment:
    return Assignment(round, 3, 0, rank)


# ---------------------------------------------------------------------- FlexLoRA


def cut(matrix: Matrix, rank: int) -> Matrix:
    """U_r S_r V_r^T."""
    u, s, vh = np.linalg.svd(matrix)
    kept = min(rank, len(s))
    return (u[:, :kept] * s[:kept]) @ vh[:kept]


def clear(s: Matrix, rank: int) -> bool:
    """Is there one best approximation of this rank? Not where two directions are as good as each other."""
    return rank >= len(s) or bool(s[rank - 1] - s[rank] > 1e-2 * s[0] or s[rank - 1] < 1e-12 * s[0])


@EXAMPLES
@given(plans())
def test_flex_lora_is_the_papers_algorithm_on_dense_matrices(plan):
    drawn = scene(FLEX, plan)
    mean, after = mean_product(drawn), drawn.next()
    s = singular_values(mean)
    assume(clear(s, drawn.state.rank))
    np.testing.assert_allclose(product(after.tensors), cut(mean, drawn.state.rank), rtol=0, atol=CLOSE * s[0])
    for rank in {*plan.budgets}:
        if not clear(s, rank):
            continue
        start = FLEX.start_of(after, node(rank)).tensors
        assert [start[name].shape for name in FACTORS] == [(OUTPUTS, rank), (rank, INPUTS)]
        np.testing.assert_allclose(product(start), cut(mean, rank), rtol=0, atol=CLOSE * s[0])
    rows = sum(update.weight for update in drawn.updates)
    change = sum(update.weight / rows * update.delta["classifier.weight"].double() for update in drawn.updates)
    head = drawn.state.tensors["classifier.weight"].double() + change
    torch.testing.assert_close(after.tensors["classifier.weight"].double(), head, rtol=0.0, atol=CLOSE)


@EXAMPLES
@given(plans())
def test_what_flex_lora_sends_a_node_is_the_best_of_its_rank(plan):
    drawn = scene(FLEX, plan)
    mean, after = mean_product(drawn), drawn.next()
    scale = np.linalg.norm(mean)
    for rank in range(1, after.rank + 1):
        start = FLEX.start_of(after, node(rank)).tensors
        assert np.linalg.norm(mean - product(start)) <= math.sqrt(tail(mean, rank)) + CLOSE * scale
        a = start[FACTORS[1]].double().numpy()
        np.testing.assert_allclose((a @ a.T)[:INPUTS, :INPUTS], np.eye(min(rank, INPUTS)), rtol=0, atol=CLOSE)


@EXAMPLES
@given(plans(), st.integers(min(INPUTS, OUTPUTS), 6))
def test_flex_lora_is_exact_where_the_rank_suffices(plan, largest):
    assert LAWS[EXACT](FLEX, replace(plan, budgets=(largest, *plan.budgets[1:]))) <= CLOSE


@EXAMPLES
@given(plans(), st.integers(1, 6))
def test_flex_lora_keeps_the_product_where_nobody_learned(plan, rank):
    drawn = scene(FLEX, replace(plan, budgets=(rank,) * len(plan.budgets)))
    nothing = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]
    before = drawn.state.tensors
    once = drawn.next(nothing)
    again = replace(drawn, state=once).next(nothing)
    for state in (once, again):
        np.testing.assert_allclose(
            product(state.tensors), product(before), rtol=0, atol=CLOSE * np.linalg.norm(product(before))
        )
    assert torch.equal(once.tensors["classifier.weight"], before["classifier.weight"])


def test_flex_loras_factors_turn_where_nobody_learned():
    drawn = scene(FLEX, Plan((3, 3), (0, 1), (1, 4), 8))
    nothing = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]
    after = drawn.next(nothing).tensors
    assert all(float((after[name] - drawn.state.tensors[name]).norm()) > 0.1 for name in FACTORS)


def test_flex_lora_leaves_room_to_learn_from_a_b_of_zero():
    """The first state of a real adapter: nothing learned yet, and A must not become singular."""
    drawn = scene(FLEX, Plan((3, 2), (0, 1), (1, 4), 8))
    zero = State(drawn.state.tensors | {FACTORS[0]: torch.zeros(OUTPUTS, 3)})
    nothing = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]
    after = replace(drawn, state=zero).next(nothing).tensors
    assert not after[FACTORS[0]].any()
    a, old = (tensors[FACTORS[1]].double() for tensors in (after, zero.tensors))
    assert_orthonormal(np.linalg.qr(a.numpy().T).Q.T)
    torch.testing.assert_close(a @ a.T, torch.eye(3, dtype=torch.float64), rtol=0.0, atol=CLOSE)
    torch.testing.assert_close(old @ a.T @ a, old, rtol=0.0, atol=CLOSE)  # the same directions as before


# ---------------------------------------------------------------------- FFA-LoRA and RoLoRA, as real federations


def factors(names: Iterable[str], axis: int) -> set[str]:
    return {name for name in names if rank_axis(name) == axis}


def exported(outcome: Outcome) -> Tensors:
    """The tensors of the adapter folder, by their names on the wire."""
    saved = load_file(outcome.folder / "model" / "last" / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}


@pytest.fixture(scope="module")
def ffa(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(
        tmp_path_factory.mktemp("ffa"), QV | {"strategy": "ffa-lora", "num-server-rounds": 2, "evaluate": "both"}
    )


def test_ffa_lora_never_sends_a(ffa: Outcome) -> None:
    exchanges = [*ffa.grid.of("train"), *ffa.grid.of("evaluate")]
    assert len(exchanges) == 2 * 3 + 3 * 3
    for exchange in exchanges:
        assert factors(sent(exchange.request), 1)
        assert not factors(sent(exchange.request), 0)
    for exchange in ffa.grid.of("train"):
        assert exchange.reply is not None
        assert sent(exchange.reply).keys() == sent(exchange.request).keys()
    assert not factors(ffa.state().tensors, 0)


def test_ffa_loras_adapter_has_the_a_of_the_runs_seed(ffa: Outcome) -> None:
    fresh, saved = build(ffa.base, ffa.task, 8, "cpu").trained, exported(ffa)
    names = factors(fresh, 0)
    assert names == factors(saved, 0)
    assert len(names) == 8
    for name in names:
        assert torch.equal(saved[name], fresh[name].detach())
        assert fresh[name].detach().any()
    for name, tensor in ffa.state().tensors.items():
        if rank_axis(name) == 1:
            assert torch.equal(saved[name], tensor)
            assert tensor.any()  # it moved: at the start it is zero


def test_ffa_lora_sends_half_of_what_fedavg_does(ffa: Outcome, tmp_path: Path) -> None:
    fedavg = federate(tmp_path, QV)
    plain, half = (sent(outcome.grid.of("train")[0].reply) for outcome in (fedavg, ffa))
    head = raw_bytes({name: tensor for name, tensor in plain.items() if rank_axis(name) is None})
    assert 2 * (raw_bytes(half) - head) == raw_bytes(plain) - head
    for one, two in zip(fedavg.rounds[1]["nodes"], ffa.rounds[1]["nodes"], strict=True):
        assert 0.5 < two["bytes_up"] / one["bytes_up"] < 0.6


@pytest.fixture(scope="module")
def rolora(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("rolora"), QV | {"strategy": "rolora", "num-server-rounds": 3})


def test_rolora_takes_turns(rolora: Outcome) -> None:
    head = {"classifier.weight", "classifier.bias"}
    exchanges = rolora.grid.of("train")
    assert len(exchanges) == 9
    for position, exchange in enumerate(exchanges):
        number = 1 + position // 3
        assert exchange.reply is not None
        down, up = sent(exchange.request), sent(exchange.reply)
        assert len(down) == 2 * 8 + 2
        assert up.keys() == head | factors(down, number % 2)
        assert len(up) == 8 + 2
        assert all(tensor.any() for tensor in up.values())


def test_rolora_keeps_the_factor_that_rests_bit_for_bit(rolora: Outcome) -> None:
    states = [sent(exchange.request) for exchange in rolora.grid.of("train")[::3]] + [rolora.state().tensors]
    assert equal(states[0], {n: t.detach() for n, t in build(rolora.base, rolora.task, 8, "cpu").trained.items()})
    for number, (before, after) in enumerate(itertools.pairwise(states), 1):
        for name, tensor in before.items():
            rests = rank_axis(name) == (0 if number % 2 else 1)
            assert torch.equal(after[name], tensor) == rests, (number, name)


@pytest.mark.parametrize("round", [1, 2])
def test_rolora_freezes_a_factor_only_while_it_rests(round: int) -> None:
    model = toy_model(ROLORA, 3, seed=2)
    before = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
    resting = FACTORS[round % 2]
    asked: list[dict[str, bool]] = []

    def look() -> torch.Tensor:
        asked.append({name: tensor.requires_grad for name, tensor in model.trained.items()})
        return torch.zeros(())

    trainer().fit(model, ROLORA.live(model, node(3, round)), look)
    assert asked
    assert all(seen == {name: name != resting for name in model.trained} for seen in asked)
    assert all(tensor.requires_grad for tensor in model.trained.values())
    for name, tensor in model.trained.items():
        assert torch.equal(tensor.detach(), before[name]) == (name == resting)


def test_a_factor_may_train_again_after_training_failed() -> None:
    model = toy_model(ROLORA, 3, seed=2)

    def breaks() -> torch.Tensor:
        raise ArithmeticError("lost")

    with pytest.raises(ArithmeticError, match="lost"):
        trainer().fit(model, ROLORA.live(model, node(3)), breaks)
    assert all(tensor.requires_grad for tensor in model.trained.values())


@pytest.mark.judged
@pytest.mark.parametrize("which", ["ffa", "rolora"])
def test_a_run_of_an_exact_rule_reads_as_nothing(which: str, request: pytest.FixtureRequest) -> None:
    outcome: Outcome = request.getfixturevalue(which)
    assert outcome.rounds[0]["aggregation-error"] == {}
    for line in outcome.rounds[1:]:
        assert line["aggregation-error"].keys() == {"overall", *modules(outcome.state().tensors)}
        assert max(line["aggregation-error"].values()) < CLOSE

"""Low-rank sums against dense matrices, the strategies that use them against their papers, and the meter."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from in_process import Exchange, Outcome, hold
from laws import FACTORS, INPUTS, LAWS, OUTPUTS, Plan, Scene, plans, scene, toy_model
from numpy.typing import NDArray
from safetensors.torch import load_file
from test_bad_replies import retold
from test_federation import equal, raw_bytes, sent
from test_laws import trainer

import strategies
from strategies.algebra.lowrank import ProductSum, _completed, factor_names, modules, rank_axis
from strategies.algebra.tensors import Tensors, added
from strategies.exchange.contract import EXACT
from strategies.exchange.meter import Meter
from strategies.exchange.vocabulary import State, Ticket, Update
from task.model import build

CLOSE = 1e-5  # float32 factors of size 1
EXAMPLES = settings(max_examples=60)
Matrix = NDArray[np.float64]
Term = tuple[float, torch.Tensor, torch.Tensor]  # coefficient, B, A

FLEX, FFA, ROLORA = strategies.load("flex-lora"), strategies.load("ffa-lora"), strategies.load("rolora")
FEDAVG = strategies.load("fedavg")
LOW_RANK = [n for n in strategies.names() if "lora" in (strategies.load(n).tunings or {"lora"})]


# ---------------------------------------------------------------------- sums of products


@st.composite
def terms(draw: st.DrawFn) -> list[Term]:
    """1 to 12 products of ranks 1 to 4, of one shape with sides 1 to 8."""
    outputs, inputs = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    ranks = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    return products(outputs, inputs, ranks, draw(st.integers(0, 2**20)))


def products(outputs: int, inputs: int, ranks: Iterable[int], seed: int) -> list[Term]:
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers, dtype=torch.float64)

    return [(float(normal(1)), normal(outputs, rank), normal(rank, inputs)) for rank in ranks]


def total(drawn: Iterable[Term]) -> ProductSum:
    result = ProductSum()
    for coefficient, b, a in drawn:
        result.add(coefficient, b, a)
    return result


def dense(drawn: Iterable[Term]) -> Matrix:
    return np.sum([coefficient * b.double().numpy() @ a.double().numpy() for coefficient, b, a in drawn], axis=0)


def size(drawn: Iterable[Term]) -> float:
    """What rounding errors of a sum are relative to."""
    return sum(abs(c) * float(b.norm() * a.norm()) for c, b, a in drawn)


def split(of: ProductSum, rank: int, inputs: int) -> tuple[Matrix, Matrix]:
    b, a = of.split(rank, torch.randn(rank, inputs, generator=torch.Generator().manual_seed(3)))
    assert b.dtype == a.dtype == torch.float64
    return b.numpy(), a.numpy()


def singular_values(matrix: Matrix) -> Matrix:
    return np.linalg.svd(matrix, compute_uv=False)


def tail(matrix: Matrix, rank: int) -> float:
    """The smallest squared error of any approximation of this rank (Eckart and Young)."""
    return float((singular_values(matrix)[rank:] ** 2).sum())


def assert_orthonormal(a: Matrix) -> None:
    """As many rows as there are inputs are orthonormal; there is no room for more."""
    full = min(a.shape)
    np.testing.assert_allclose(a[:full] @ a[:full].T, np.eye(full), rtol=0, atol=1e-10)
    assert not a[full:].any()


@EXAMPLES
@given(terms())
def test_a_sums_norm_is_that_of_the_dense_sum(drawn):
    assert total(drawn).norm() == pytest.approx(np.linalg.norm(dense(drawn)), rel=1e-9, abs=1e-12 * size(drawn))


@pytest.mark.parametrize(("outputs", "inputs"), [(6, 6), (9, 2), (2, 9), (1, 7), (7, 1), (40, 3), (3, 40)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_stack_never_outgrows_twice_the_smaller_side_by_more_than_a_term(outputs, inputs, rank):
    drawn = products(outputs, inputs, [rank] * 30, seed=1)
    result = ProductSum()
    for number, term in enumerate(drawn, 1):
        result.add(*term)
        ranks = [part.shape[0] for part in result._right]
        assert [part.shape[1] for part in result._left] == ranks
        assert sum(ranks) <= 2 * min(outputs, inputs) + rank
        assert result.norm() == pytest.approx(np.linalg.norm(dense(drawn[:number])), rel=1e-10)
    b, a = split(result, min(outputs, inputs), inputs)
    np.testing.assert_allclose(b @ a, dense(drawn), rtol=0, atol=1e-11 * size(drawn))


@EXAMPLES
@given(terms())
def test_plus_adds_a_term_and_leaves_the_original_alone(drawn):
    *most, last = drawn
    assume(most)
    original, untouched = total(most), total(most)
    longer = original.plus(*last)
    assert longer.norm() == pytest.approx(np.linalg.norm(dense(drawn)), rel=1e-9, abs=1e-12 * size(drawn))
    for parts, same in ((original._left, untouched._left), (original._right, untouched._right)):
        assert all(torch.equal(part, other) for part, other in zip(parts, same, strict=True))


@EXAMPLES
@given(terms())
def test_terms_that_cancel_leave_rounding_only(drawn):
    nothing = total([*drawn, *((-c, b, a) for c, b, a in drawn)])
    assert nothing.norm() <= 1e-12 * size(drawn)


@EXAMPLES
@given(drawn=terms(), rank=st.integers(1, 10))
def test_a_split_is_the_best_of_its_rank(drawn, rank):
    matrix = dense(drawn)
    b, a = split(total(drawn), rank, matrix.shape[1])
    assert (b.shape, a.shape) == ((matrix.shape[0], rank), (rank, matrix.shape[1]))
    error = float(np.linalg.norm(matrix - b @ a) ** 2)
    assert error == pytest.approx(tail(matrix, rank), rel=1e-9, abs=1e-18 * size(drawn) ** 2)


@EXAMPLES
@given(drawn=terms(), rank=st.integers(1, 10))
def test_a_split_has_singular_values_in_b_and_orthonormal_rows_in_a(drawn, rank):
    matrix = dense(drawn)
    u, s, vh = np.linalg.svd(matrix)
    assume((-np.diff(np.append(s, 0)) > 1e-4 * s[0]).all())
    b, a = split(total(drawn), rank, matrix.shape[1])
    kept = min(rank, len(s))
    np.testing.assert_allclose(np.abs(b[:, :kept]), np.abs(u[:, :kept] * s[:kept]), rtol=0, atol=1e-9 * size(drawn))
    np.testing.assert_allclose(np.abs(a[:kept]), np.abs(vh[:kept]), rtol=0, atol=1e-9 * size(drawn) / s[-1])
    assert_orthonormal(a)
    assert (a[:kept].max(axis=1) >= np.abs(a[:kept]).max(axis=1) - 1e-9).all()
    assert not b[:, kept:].any()


@EXAMPLES
@given(terms(), st.integers(1, 10))
def test_ranks_that_the_sum_lacks_are_zero_in_b_and_independent_in_a(drawn, more):
    coefficient, b, a = drawn[0]
    own = min(*b.shape, *a.shape)
    rank = own + more
    new_b, new_a = split(total([(coefficient, b, a)]), rank, a.shape[1])
    assert not new_b[:, own:].any()
    assert new_b[:, :own].any(axis=0).all()
    assert_orthonormal(new_a)
    np.testing.assert_allclose(new_b @ new_a, coefficient * (b @ a).numpy(), rtol=0, atol=1e-12 * size(drawn))


@pytest.mark.parametrize(("outputs", "inputs", "rank"), [(4, 5, 3), (4, 5, 7), (1, 1, 1), (5, 2, 6), (2, 5, 4)])
def test_a_zero_sum_splits_into_nothing_and_the_spare_rows_span(outputs, inputs, rank):
    zeros = total(
        [(1.0, torch.zeros(outputs, 2), torch.ones(2, inputs)), (0.0, torch.ones(outputs, 1), torch.ones(1, inputs))]
    )
    spare = torch.randn(rank, inputs, generator=torch.Generator().manual_seed(4)).double()
    b, a = zeros.split(rank, spare)
    assert zeros.norm() == 0
    assert not b.any()
    assert_orthonormal(a.numpy())
    outside = spare - spare @ a.T @ a
    assert float(outside.norm()) < 1e-10


@EXAMPLES
@given(drawn=terms(), rank=st.integers(1, 8), shuffled=st.randoms(use_true_random=False))
def test_the_order_of_terms_does_not_matter(drawn, rank, shuffled):
    s = np.append(singular_values(dense(drawn)), 0)
    assume((-np.diff(s) > 1e-3 * s[0]).all())
    inputs = drawn[0][2].shape[1]
    other = shuffled.sample(drawn, len(drawn))
    for one, two in zip(split(total(drawn), rank, inputs), split(total(other), rank, inputs), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-9 * max(1.0, size(drawn)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_terms_of_any_precision_are_summed_in_float64(dtype):
    drawn = [(c, b.to(dtype).requires_grad_(), a.to(dtype)) for c, b, a in products(6, 5, [2, 3], seed=5)]
    exact = [(c, b.detach(), a) for c, b, a in drawn]
    b, a = split(total(drawn), 5, 5)
    np.testing.assert_allclose(b @ a, dense(exact), rtol=0, atol=1e-13 * size(exact))


# ---------------------------------------------------------------------- names, and rows that complete others


def test_modules_are_those_of_factors_in_order_of_first_appearance():
    names = ["head.weight", "b.q.lora_B.weight", "a.lora_A.weight", "b.q.lora_A.weight", "a.bias", "c.lora_B.weight"]
    assert modules(names) == ["b.q", "a", "c"]
    assert modules(["head.weight", "a.lora.bias"]) == modules([]) == []


def test_factor_names_are_b_and_a_of_their_module():
    names = factor_names("vit.layers.0.mlp.fc1")
    assert names == ("vit.layers.0.mlp.fc1.lora_B.weight", "vit.layers.0.mlp.fc1.lora_A.weight")
    assert [rank_axis(name) for name in names] == [1, 0]
    assert modules(names) == ["vit.layers.0.mlp.fc1"]


@EXAMPLES
@given(inputs=st.integers(1, 8), own=st.integers(0, 8), rank=st.integers(0, 12), seed=st.integers(0, 2**20))
def test_rows_are_completed_from_spare_ones_first(inputs, own, rank, seed):
    numbers = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(inputs, inputs, generator=numbers).double()).Q[: min(own, inputs, rank)]
    spare = torch.randn(max(rank - len(rows), 0), inputs, generator=numbers).double()
    whole = _completed(rows, rank, spare)
    assert whole.shape == (rank, inputs)
    assert torch.equal(whole[: len(rows)], rows)
    assert_orthonormal(whole.numpy())
    outside = spare - spare @ whole.T @ whole  # nothing of the spare rows is lost, whether or not they all fit
    assert float(outside.norm()) < 1e-2  # a spare row may be dropped that adds less than a thousandth


@pytest.mark.parametrize("copies", [1.0, 1e3, 1e-9, 0.0])
def test_spare_rows_that_add_nothing_give_way_to_the_axes(copies):
    rows = torch.eye(5, dtype=torch.float64)[1:3]
    whole = _completed(rows, 4, copies * rows)
    assert_orthonormal(whole.numpy())
    assert torch.equal(whole[2:], torch.eye(5, dtype=torch.float64)[[0, 3]])


def test_spare_rows_that_add_little_still_make_orthogonal_ones():
    rows = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()).Q[:3]
    spare = rows.sum(0) + 2e-3 * torch.eye(6, dtype=torch.float64)[:3]
    assert_orthonormal(_completed(rows, 6, spare).numpy())


# ---------------------------------------------------------------------- FlexLoRA


def cut(matrix: Matrix, rank: int) -> Matrix:
    """U_r S_r V_r^T."""
    u, s, vh = np.linalg.svd(matrix)
    kept = min(rank, len(s))
    return (u[:, :kept] * s[:kept]) @ vh[:kept]


def clear(s: Matrix, rank: int) -> bool:
    """Is there one best approximation of this rank? Not where two directions are as good as each other."""
    return rank >= len(s) or bool(s[rank - 1] - s[rank] > 1e-2 * s[0] or s[rank - 1] < 1e-12 * s[0])


def product(tensors: Tensors) -> Matrix:
    b, a = (tensors[name].double().numpy() for name in FACTORS)
    return b @ a


def mean_product(drawn: Scene) -> Matrix:
    """sum_i p_i B_i A_i of what the nodes of a scene trained."""
    rows = sum(update.weight for update in drawn.updates)
    starts = [drawn.strategy.start_of(drawn.state, update.ticket).tensors for update in drawn.updates]
    trained = [added(start, update.delta) for start, update in zip(starts, drawn.updates, strict=True)]
    return np.sum([u.weight / rows * product(t) for u, t in zip(drawn.updates, trained, strict=True)], axis=0)


def node(rank: int, round: int = 1) -> Ticket:
    return Ticket(round, 3, 0, rank)


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

QV = {"lora.targets": "q_proj,v_proj", "local-steps": 2}


def factors(names: Iterable[str], axis: int) -> set[str]:
    return {name for name in names if rank_axis(name) == axis}


def exported(outcome: Outcome) -> Tensors:
    """The tensors of the adapter folder, by their names on the wire."""
    saved = load_file(outcome.folder / "model" / "last" / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}


@pytest.fixture(scope="module")
def ffa(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return hold(
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
    fedavg = hold(tmp_path, QV)
    plain, half = (sent(outcome.grid.of("train")[0].reply) for outcome in (fedavg, ffa))
    head = raw_bytes({name: tensor for name, tensor in plain.items() if rank_axis(name) is None})
    assert 2 * (raw_bytes(half) - head) == raw_bytes(plain) - head
    for one, two in zip(fedavg.rounds[1]["nodes"], ffa.rounds[1]["nodes"], strict=True):
        assert 0.5 < two["bytes_up"] / one["bytes_up"] < 0.6


@pytest.fixture(scope="module")
def rolora(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return hold(tmp_path_factory.mktemp("rolora"), QV | {"strategy": "rolora", "num-server-rounds": 3})


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


# ---------------------------------------------------------------------- the meter


def reading(drawn: Scene) -> dict[str, float]:
    """What the meter says of a scene, used as the round loop uses it."""
    meter = Meter()
    for update in drawn.updates:
        meter.see(added(drawn.strategy.start_of(drawn.state, update.ticket).tensors, update.delta), update.weight)
    return meter.read(drawn.next().tensors)


def relative(off: Matrix, mean: Matrix) -> float:
    return float(np.linalg.norm(off) / np.linalg.norm(mean))


def with_own(tensors: Tensors, plan: Plan, scene_of: Scene) -> Tensors:
    """The factors of a scene; one that is not exchanged is the model's own."""
    return {**toy_model(scene_of.strategy, scene_of.state.rank or min(plan.budgets), plan.seed).fresh, **tensors}


@pytest.mark.parametrize("name", LOW_RANK)
@EXAMPLES
@given(plan=plans())
def test_readings_are_those_of_dense_matrices(name, plan):
    drawn = scene(strategies.load(name), plan)
    rows = sum(update.weight for update in drawn.updates)
    mean = np.zeros((OUTPUTS, INPUTS))
    for update in drawn.updates:
        start = drawn.strategy.start_of(drawn.state, update.ticket).tensors
        mean += update.weight / rows * product(with_own(added(start, update.delta), plan, drawn))
    off = product(with_own(drawn.next().tensors, plan, drawn)) - mean
    read = reading(drawn)
    assert read.keys() == {"overall", "m0"}
    assert read["overall"] == pytest.approx(read["m0"], rel=1e-12)
    assert read["m0"] == pytest.approx(relative(off, mean), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("strategy", [FFA, ROLORA], ids=["ffa-lora", "rolora"])
@EXAMPLES
@given(plan=plans())
def test_exact_rules_read_as_nothing(strategy, plan):
    assert reading(scene(strategy, plan))["overall"] < CLOSE


@EXAMPLES
@given(plans(), st.integers(min(INPUTS, OUTPUTS), 6))
def test_flex_lora_reads_as_nothing_where_the_rank_suffices(plan, largest):
    assert reading(scene(FLEX, replace(plan, budgets=(largest, *plan.budgets[1:]))))["overall"] < CLOSE


def test_flex_lora_reads_as_what_the_rank_lacks():
    drawn = scene(FLEX, Plan((2, 2, 1), (0, 1, 2), (3, 1, 2), 5))
    mean = mean_product(drawn)
    lacking = math.sqrt(tail(mean, 2)) / np.linalg.norm(mean)
    assert lacking > 1e-2
    assert reading(drawn)["overall"] == pytest.approx(lacking, rel=1e-4)


@pytest.mark.parametrize("name", ["rbla", "zero-pad"])
@pytest.mark.parametrize("seed", range(5))
def test_mixed_ranks_make_factor_averages_inexact(name, seed):
    assert reading(scene(strategies.load(name), Plan((1, 3, 6), (0, 1, 2), (2, 1, 3), seed)))["overall"] > 1e-2


def by_hand(name: str, *nodes: tuple[float, list[int]]) -> dict[str, float]:
    """Two nodes from zero: each has a weight and the axes whose e e^T its product is the sum of."""
    strategy = strategies.load(name)
    rank = max(len(axes) for _, axes in nodes)
    state = State({FACTORS[0]: torch.zeros(OUTPUTS, rank), FACTORS[1]: torch.zeros(rank, INPUTS)})
    updates = [
        Update(
            str(i), node(len(axes)), {FACTORS[0]: torch.eye(OUTPUTS)[:, axes], FACTORS[1]: torch.eye(INPUTS)[axes]}, w
        )
        for i, (w, axes) in enumerate(nodes)
    ]
    return reading(Scene(strategy, state, updates))


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 1.0), 1 / math.sqrt(2)), ((3.0, 1.0), 3 / math.sqrt(40))])
def test_two_orthogonal_nodes_under_fedavg(weights, expected):
    """The mean is p e1 e1^T + q e2 e2^T; of the means comes (p e1 + q e2)(p e1 + q e2)^T. Every one of four entries is
    off by p q, so the reading is 2 p q / sqrt(p^2 + q^2)."""
    read = by_hand("fedavg", (weights[0], [0]), (weights[1], [1]))
    assert read == {"overall": pytest.approx(expected, rel=1e-7), "m0": pytest.approx(expected, rel=1e-7)}


@pytest.mark.parametrize(
    ("name", "expected"), [("rbla", 1 / math.sqrt(5)), ("zero-pad", 1 / math.sqrt(20)), ("flex-lora", 0.0)]
)
def test_two_nodes_of_ranks_one_and_two(name, expected):
    """e1 e1^T and e1 e1^T + e2 e2^T have the mean e1 e1^T + e2 e2^T / 2. RBLA keeps the owner's e2 e2^T whole,
    zero padding halves both of its factors; FlexLoRA has the rank that it takes."""
    read = by_hand(name, (1.0, [0]), (1.0, [0, 1]))
    assert read["overall"] == pytest.approx(expected, rel=1e-7, abs=1e-7)


@EXAMPLES
@given(st.lists(terms(), min_size=1, max_size=3), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_overall_is_all_modules_as_one_vector(shapes, weights):
    """Module i has the factors of the i-th list's terms, scaled anew by every node."""
    meter, numbers = Meter(), torch.Generator().manual_seed(len(weights))
    means = [np.zeros((t[0][1].shape[0], t[0][2].shape[1])) for t in shapes]
    state: Tensors = {}
    for weight in weights:
        trained: Tensors = {"head.weight": torch.ones(2, 2)}
        for i, (_, b, a) in enumerate(t[0] for t in shapes):
            b_name, a_name = factor_names(f"m{i}")
            for name, factor in ((b_name, b), (a_name, a)):
                trained[name] = factor * torch.randn(factor.shape, generator=numbers, dtype=factor.dtype)
            means[i] += weight / sum(weights) * dense([(1.0, trained[b_name], trained[a_name])])
            state |= {b_name: b, a_name: a}
        meter.see(trained, weight)
    read = meter.read(state)
    offs = [dense([(1.0, t[0][1], t[0][2])]) - mean for t, mean in zip(shapes, means, strict=True)]
    assert read == pytest.approx(
        {f"m{i}": relative(off, mean) for i, (off, mean) in enumerate(zip(offs, means, strict=True))}
        | {"overall": math.sqrt(sum((off**2).sum() for off in offs) / sum((mean**2).sum() for mean in means))},
        rel=1e-9,
    )


def test_nothing_learned_reads_as_nothing_said():
    meter = Meter()
    assert meter.read({}) == {}
    meter.see({"head.weight": torch.ones(2, 2)}, 3.0)
    assert meter.read({"head.weight": torch.ones(2, 2)}) == {}
    idle = {FACTORS[0]: torch.zeros(OUTPUTS, 2), FACTORS[1]: torch.ones(2, INPUTS)}
    meter.see(idle, 3.0)
    assert meter.read(idle) == {}


# ---------------------------------------------------------------------- what is written down


def measured(exchanges: Iterable[Exchange], state: Tensors) -> dict[str, float]:
    """The readings from what went over the wire, as dense float64 matrices."""
    pairs = [(sent(e.request), sent(e.reply), e.reply) for e in exchanges if e.reply is not None]
    weights = [float(reply["metrics"]["num-examples"]) for *_, reply in pairs]  # type: ignore[index,arg-type]
    trained = [added(start, delta) for start, delta, _ in pairs]
    offs, means, read = 0.0, 0.0, {}
    for module in modules(state):
        names = factor_names(module)
        mean = dense((w / sum(weights), t[names[0]], t[names[1]]) for w, t in zip(weights, trained, strict=True))
        off = dense([(1.0, state[names[0]], state[names[1]])]) - mean
        read[module] = relative(off, mean)
        offs, means = offs + float((off**2).sum()), means + float((mean**2).sum())
    return read | {"overall": math.sqrt(offs / means)}


@pytest.mark.parametrize("name", ["fedavg", "rbla", "zero-pad", "flex-lora"])
def test_a_runs_readings_are_those_of_its_messages(name: str, tmp_path: Path) -> None:
    outcome = hold(
        tmp_path, QV | {"strategy": name, "lora.ranks": "2,4,8", "num-server-rounds": 2, "learning-rate": 0.05}
    )
    exchanges = outcome.grid.of("train")
    # A node of full rank is sent the whole state; where ranks are equal everybody is.
    states = [sent(exchanges[5].request), outcome.state().tensors]
    assert outcome.rounds[0]["inexactness"] == {}
    for number, state in enumerate(states, 1):
        read = outcome.rounds[number]["inexactness"]
        assert read.keys() == {"overall", *modules(state)}
        assert len(read) == 1 + 8
        assert read == pytest.approx(measured(exchanges[3 * number - 3 : 3 * number], state), rel=1e-6, abs=1e-6)
    assert outcome.rounds[2]["inexactness"]["overall"] > 1e-2


@pytest.mark.parametrize("which", ["ffa", "rolora"])
def test_a_run_of_an_exact_rule_reads_as_nothing(which: str, request: pytest.FixtureRequest) -> None:
    outcome: Outcome = request.getfixturevalue(which)
    assert outcome.rounds[0]["inexactness"] == {}
    for line in outcome.rounds[1:]:
        assert line["inexactness"].keys() == {"overall", *modules(outcome.state().tensors)}
        assert max(line["inexactness"].values()) < CLOSE


@pytest.mark.parametrize("tuning", ["bias", "head"])
def test_without_adapters_there_is_nothing_to_read(tuning: str, tmp_path: Path) -> None:
    assert [line["inexactness"] for line in hold(tmp_path, {"tuning": tuning}).rounds] == [{}, {}]


def not_a_number(reply: Message) -> Message:
    return retold(reply, lambda tensors: {name: torch.full_like(t, float("nan")) for name, t in tensors.items()})


def test_a_refused_node_does_not_count(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        return not_a_number(reply) if (partition, kind) == (1, "train") else reply

    outcome = hold(tmp_path, QV, spoil=spoil)
    line = outcome.rounds[1]
    assert [bool(entry["refused"]) for entry in line["nodes"]] == [False, True, False]
    good = [exchange for exchange in outcome.grid.of("train") if exchange.partition != 1]
    assert line["inexactness"] == pytest.approx(measured(good, outcome.state().tensors), rel=1e-6, abs=1e-6)
    assert line["inexactness"]["overall"] > 1e-4


def test_a_failed_round_has_no_readings(tmp_path: Path) -> None:
    seen: list[int] = []

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        seen.extend([partition] if kind == "train" else [])
        return not_a_number(reply) if kind == "train" and len(seen) <= 2 else reply

    _, failed, good = hold(tmp_path, QV | {"num-server-rounds": 2}, spoil=spoil).rounds
    assert failed["failed"]
    assert failed["inexactness"] == {}
    assert not good["failed"]
    assert good["inexactness"]["overall"] > 0

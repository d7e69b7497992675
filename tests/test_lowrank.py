"""Sums of products against dense matrices, names of factors, and rows that complete others."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from matrices import Matrix, Term, assert_orthonormal, dense, products, singular_values, tail, terms
from tiers import examples

from strategies.algebra.lowrank import ProductSum, _completed, factor_names, modules, rank_axis

EXAMPLES = examples(60)


# ---------------------------------------------------------------------- sums of products


def total(drawn: Iterable[Term]) -> ProductSum:
    result = ProductSum()
    for coefficient, b, a in drawn:
        result.add(coefficient, b, a)
    return result


def size(drawn: Iterable[Term]) -> float:
    """What rounding errors of a sum are relative to."""
    return sum(abs(c) * float(b.norm() * a.norm()) for c, b, a in drawn)


def split(of: ProductSum, rank: int, inputs: int) -> tuple[Matrix, Matrix]:
    b, a = of.split(rank, torch.randn(rank, inputs, generator=torch.Generator().manual_seed(3)))
    assert b.dtype == a.dtype == torch.float64
    return b.numpy(), a.numpy()


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

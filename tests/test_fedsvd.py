"""FedSVD against its equations on dense matrices, and beside FFA-LoRA as a real federation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from in_process import QV, equal, federate, sent
from laws import FACTORS, INPUTS, OUTPUTS, nothing_of, plans, scene
from matrices import Matrix, mean_product, product
from tiers import examples

import strategies
from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import State
from strategies.wrappers.central_privacy import CentralPrivacy

CLOSE = 1e-5  # float32 factors of size 1
EXAMPLES = examples(30)
FEDSVD, FROZEN = strategies.load("fedsvd"), strategies.load("fedsvd", every=0)
B, A = FACTORS


def by_hand(mean: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """B = U_r S_r and A = V_r^T, the largest entry of every row of A positive."""
    u, s, vh = np.linalg.svd(mean)
    kept = min(rank, len(s))
    signs = np.sign(vh[np.arange(kept), np.abs(vh[:kept]).argmax(axis=1)])
    return u[:, :kept] * s[:kept] * signs, signs[:, None] * vh[:kept]


@EXAMPLES
@given(plans())
def test_it_is_the_papers_algorithm_on_dense_matrices(plan):
    drawn = scene(FEDSVD, plan)
    rank = drawn.updates[0].assignment.rank
    after, mean = drawn.next().tensors, mean_product(drawn)
    b, a = by_hand(mean, rank)
    np.testing.assert_allclose(product(after), mean, rtol=0, atol=CLOSE * np.linalg.norm(mean))
    s = np.linalg.svd(mean, compute_uv=False)
    for k in range(min(rank, INPUTS, OUTPUTS)):
        gap = min(abs(s[k] - other) for other in [*np.delete(s, k), 0.0])
        ordered = np.sort(np.abs(a[k]))
        if gap > 0.1 * s[0] and ordered[-1] - ordered[-2] > 1e-3:  # a direction and a sign of its own
            np.testing.assert_allclose(after[A][k].double().numpy(), a[k], rtol=0, atol=1e-4)
            np.testing.assert_allclose(after[B][:, k].double().numpy(), b[:, k], rtol=0, atol=1e-4 * s[0])
    rows = after[A].double()[: min(after[A].shape)]
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0.0, atol=CLOSE)


@EXAMPLES
@given(plans())
def test_the_gradient_of_b_is_at_most_the_weights(plan):
    """dL/dB = G A^T for a scaling of 1: orthonormal rows shorten it."""
    a = scene(FEDSVD, plan).next().tensors[A].double()
    gradient = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(plan.seed), dtype=torch.float64)
    assert float((gradient @ a.T).norm()) <= float(gradient.norm()) * (1 + CLOSE)


@EXAMPLES
@given(plans())
def test_a_product_of_zero_keeps_a(plan):
    drawn = scene(FEDSVD, plan)
    zero = State(drawn.state.tensors | {B: torch.zeros_like(drawn.state.tensors[B])})
    nothing = [replace(update, delta=nothing_of(update.delta)) for update in drawn.updates]
    assert equal(replace(drawn, state=zero).next(nothing).tensors, zero.tensors)


@EXAMPLES
@given(plans())
def test_ranks_that_b_lacks_can_still_learn(plan):
    """B of rank one: the rows of A stay orthonormal, so no rank is lost."""
    drawn = scene(FEDSVD, plan)
    before = drawn.state.tensors
    one = before[B].clone()
    one[:, 1:] = 0
    nothing = [replace(update, delta=nothing_of(update.delta)) for update in drawn.updates]
    after = replace(drawn, state=State(before | {B: one})).next(nothing).tensors
    rows = after[A].double()[: min(after[A].shape)]
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0.0, atol=CLOSE)
    assert not after[B][:, 1:].any()
    torch.testing.assert_close(after[B] @ after[A], one @ before[A], rtol=0.0, atol=1e-4)


@EXAMPLES
@given(plans())
def test_without_the_svd_only_b_moves(plan):
    drawn = scene(FROZEN, plan)
    as_ffa = replace(drawn, strategy=strategies.load("ffa-lora"))
    assert equal(drawn.next().tensors, as_ffa.next().tensors)
    assert torch.equal(drawn.next().tensors[A], drawn.state.tensors[A])


@EXAMPLES
@given(plans())
def test_the_mean_that_privacy_guards_has_b_and_the_head_alone(plan):
    """What is split afterwards is this mean and nothing else of the nodes."""
    drawn = scene(FEDSVD, plan)
    assert all(update.delta.keys() == drawn.state.tensors.keys() - {A} for update in drawn.updates)
    combined = FEDSVD.combine(drawn.state, iter(drawn.updates))
    assert not combined[A].any()
    again = FEDSVD.apply(drawn.state, {name: tensor.clone() for name, tensor in combined.items()}, 1)
    assert equal(again.tensors, drawn.next().tensors)


def test_it_fits_privacy_on_the_mean_and_no_other_step() -> None:
    assert FEDSVD.is_weighted_mean
    assert not FEDSVD.additive_across_rounds
    assert "split again by SVD" in FEDSVD.fixed_step
    assert CentralPrivacy.needs_weighted_mean


def by_axis(tensors: Tensors, axis: int) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if rank_axis(name) == axis}


@pytest.mark.judged
@pytest.mark.slow
def test_as_a_federation(tmp_path: Path) -> None:
    """B alone goes up, A follows what was learned; without the SVD it is FFA-LoRA bit for bit."""
    rounds = QV | {"num-server-rounds": 2}
    ours = federate(tmp_path / "ours", rounds | {"strategy": "fedsvd"})
    frozen = federate(tmp_path / "frozen", rounds | {"strategy": "fedsvd", "fedsvd.every": 0})
    ffa = federate(tmp_path / "ffa", rounds | {"strategy": "ffa-lora"})
    down, up = (sent(record) for record in (ours.grid.of("train")[3].request, ours.grid.of("train")[3].reply))
    assert len(by_axis(down, 0)) == len(by_axis(down, 1)) == len(by_axis(up, 1)) == 8
    assert not by_axis(up, 0)
    for a in by_axis(down, 0).values():
        torch.testing.assert_close(a @ a.T, torch.eye(len(a)), rtol=0.0, atol=1e-5)
    assert max(ours.rounds[2]["aggregation-error"].values()) < CLOSE
    theirs = ffa.state().tensors
    assert equal({name: tensor for name, tensor in frozen.state().tensors.items() if name in theirs}, theirs)

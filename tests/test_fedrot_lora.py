"""FedRot-LoRA: rotations against a search of all of them, and what nodes send with the real trainer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import QV, equal, federate
from laws import FACTORS, INPUTS, OUTPUTS, toy_model, trainer
from matrices import product
from tiers import examples

import strategies
from strategies.algebra.tensors import Tensors, added, snapshot
from strategies.exchange.types import Assignment, State, Update
from strategies.fedrot_lora import rotation

FEDROT, FEDAVG = strategies.load("fedrot-lora"), strategies.load("fedavg")
B, A = FACTORS
CLOSE = 1e-5
EXAMPLES = examples(60)
SEEDS = st.integers(0, 2**20)


def drawn(seed: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=numbers, dtype=torch.float64) for shape in shapes]


def orthogonal(seed: int, rank: int) -> torch.Tensor:
    return torch.linalg.qr(drawn(seed, (rank, rank))[0])[0]


def towards(a: torch.Tensor, sent: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    return rotation(a @ sent.T, float(a.norm() * sent.norm()), strength)


# ---------------------------------------------------------------------- rotations


@EXAMPLES
@given(SEEDS, st.integers(1, 6), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_rotation_is_orthogonal_and_brings_factors_nearer(seed: int, rank: int, strength: float) -> None:
    a, sent = drawn(seed, (rank, INPUTS), (rank, INPUTS))
    turned = towards(a, sent, strength)
    torch.testing.assert_close(turned @ turned.T, torch.eye(rank).double())
    assert (turned.T @ a - sent).norm() <= (a - sent).norm() + 1e-9 or strength == 0.3  # no reflection may do worse
    if strength == 0.3:
        assert torch.linalg.det(turned) > 0


@EXAMPLES
@given(SEEDS)
def test_of_two_ranks_it_is_the_best_of_all_rotations_and_reflections(seed: int) -> None:
    a, sent = drawn(seed, (2, INPUTS), (2, INPUTS))
    angles = np.linspace(0, 2 * np.pi, 2_001)
    tried = []
    for sign in (1, -1):
        turned = torch.tensor([[np.cos(angles), -sign * np.sin(angles)], [np.sin(angles), sign * np.cos(angles)]])
        tried.append(torch.einsum("kra,kn->arn", turned.double(), a).sub(sent).flatten(1).norm(dim=1).min())
    ours = (towards(a, sent).T @ a - sent).norm()
    assert float(ours) == pytest.approx(float(min(tried)), abs=1e-4)


@EXAMPLES
@given(SEEDS, SEEDS, st.integers(1, 4))
def test_turned_factors_are_turned_back(seed: int, other: int, rank: int) -> None:
    sent, turn = drawn(seed, (rank, INPUTS))[0], orthogonal(other, rank)
    torch.testing.assert_close(towards(turn.T @ sent, sent), turn.T)


@EXAMPLES
@given(SEEDS, st.integers(1, 6), st.integers(0, 3))
def test_what_was_not_moved_is_not_turned(seed: int, rank: int, missing: int) -> None:
    """With more ranks than inputs, and with rows of zero, too: nothing decides what becomes of these."""
    sent = drawn(seed, (rank, INPUTS))[0]
    sent[rank - missing :] = 0
    torch.testing.assert_close(towards(sent, sent), torch.eye(rank).double(), atol=1e-6, rtol=0.0)


@EXAMPLES
@given(SEEDS, st.integers(2, 4))
def test_half_way_is_the_orthogonal_part_of_the_mean_with_the_identity(seed: int, rank: int) -> None:
    a, sent = drawn(seed, (rank, INPUTS), (rank, INPUTS))
    whole = towards(a, sent)
    if torch.linalg.det(whole) < 0:
        u, _, vh = torch.linalg.svd(a @ sent.T)
        whole = u @ torch.diag(torch.tensor([*[1.0] * (rank - 1), -1.0], dtype=torch.float64)) @ vh
    mixed = (torch.eye(rank).double() + whole) / 2
    half = towards(a, sent, 0.5)
    values, vectors = torch.linalg.eigh(mixed.T @ mixed)  # the polar factor is M (M^T M)^-1/2
    torch.testing.assert_close(half, mixed @ vectors @ torch.diag(values.rsqrt()) @ vectors.T, atol=1e-4, rtol=0.0)


# ---------------------------------------------------------------------- the mean


@EXAMPLES
@given(SEEDS, st.integers(1, 4), st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_equal_products_in_other_bases_average_exactly_where_fedavg_loses_them(
    seed: int, rank: int, rows: list[int]
) -> None:
    b, a, sent = drawn(seed, (OUTPUTS, rank), (rank, INPUTS), (rank, INPUTS))
    state = State({B: torch.zeros(OUTPUTS, rank), A: torch.zeros(rank, INPUTS)})
    plain, aligned = [], []
    for node, weight in enumerate(rows):
        turn = orthogonal(seed + node, rank)
        own: Tensors = {B: b @ turn, A: turn.T @ a}
        back = towards(own[A], sent)
        assignment = Assignment(1, 1, 0, rank)
        plain.append(Update(str(node), assignment, {n: t.float() for n, t in own.items()}, weight))
        together = {B: (own[B] @ back).float(), A: (back.T @ own[A]).float()}
        aligned.append(Update(str(node), assignment, together, weight))
    expected = (b @ a).numpy()
    after = FEDROT.apply(state, FEDROT.combine(state, iter(aligned)), 1).tensors
    np.testing.assert_allclose(product(after), expected, rtol=0, atol=1e-4 * np.linalg.norm(expected))
    if rank > 1:
        lost = FEDAVG.apply(state, FEDAVG.combine(state, iter(plain)), 1).tensors
        assert np.linalg.norm(product(lost) - expected) > 1e-3 * np.linalg.norm(expected)


# ---------------------------------------------------------------------- the node's half


def trained(name: str, round: int, **options: object) -> tuple[Tensors, Tensors]:
    """What the toy has before, and after training with SGD that goes far."""
    strategy, model = strategies.load(name, **options), toy_model(FEDAVG, 3, seed=2)
    before = snapshot(model.trained)
    local = trainer(optimizer="sgd", learning_rate=0.5, local_epochs=4)
    delta, _ = strategy.train(model, local, Assignment(round, 3, 11, 3))
    return before, added(before, delta)


@pytest.mark.parametrize("round", [1, 2])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_node_sends_the_same_product_in_factors_nearer_to_those_it_was_sent(round: int, strength: float) -> None:
    before, plain = trained("fedavg", round)
    _, turned = trained("fedrot-lora", round, strength=strength)
    leads = A if round == 1 else B
    np.testing.assert_allclose(product(turned), product(plain), rtol=0, atol=CLOSE)
    assert torch.equal(turned["classifier.weight"], plain["classifier.weight"])
    assert (turned[leads] - before[leads]).norm() < (plain[leads] - before[leads]).norm() - 1e-4
    a, sent = (tensors[leads].double() for tensors in (plain, before))
    if strength == 1:
        best = torch.linalg.matrix_norm((a if leads == A else a.T) @ (sent.T if leads == A else sent), ord="nuc")
        off = (a.square().sum() + sent.square().sum() - 2 * best).sqrt()  # of the Procrustes problem
        assert float((turned[leads].double() - sent).norm()) == pytest.approx(float(off), rel=1e-4)


def test_at_strength_zero_it_is_fedavg_bit_for_bit() -> None:
    assert equal(trained("fedrot-lora", 1, strength=0.0)[1], trained("fedavg", 1)[1])


@pytest.mark.judged
@pytest.mark.slow
def test_in_a_run_the_combined_product_is_nearer_to_the_mean_than_fedavgs(tmp_path: Path) -> None:
    options = QV | {"num-server-rounds": 2, "local-steps": 20, "learning-rate": 0.02}
    errors = {}
    for name in ("fedavg", "fedrot-lora"):
        outcome = federate(tmp_path / name, options | {"strategy": name})
        errors[name] = outcome.rounds[1]["aggregation-error"]["overall"]  # of round 1, from the same start
    assert 0 < errors["fedrot-lora"] < errors["fedavg"]

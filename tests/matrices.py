"""What low-rank sums are compared with: dense matrices in float64."""

from collections.abc import Iterable

import numpy as np
import torch
from hypothesis import strategies as st
from laws import FACTORS, Scene
from numpy.typing import NDArray

from strategies.algebra.tensors import Tensors

Matrix = NDArray[np.float64]
Term = tuple[float, torch.Tensor, torch.Tensor]  # coefficient, B, A


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


def dense(drawn: Iterable[Term]) -> Matrix:
    return np.sum([coefficient * b.double().numpy() @ a.double().numpy() for coefficient, b, a in drawn], axis=0)


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


def product(tensors: Tensors) -> Matrix:
    b, a = (tensors[name].double().numpy() for name in FACTORS)
    return b @ a


def mean_product(drawn: Scene) -> Matrix:
    """sum_i p_i B_i A_i of what the nodes of a scene trained."""
    rows = sum(update.weight for update in drawn.updates)
    trained = [drawn.strategy.trained(drawn.state, update) for update in drawn.updates]
    return np.sum([u.weight / rows * product(t) for u, t in zip(drawn.updates, trained, strict=True)], axis=0)

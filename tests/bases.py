"""What bases are compared with: their vectors as columns of float64 matrices, written from the equations."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard as sylvester

from strategies.algebra import hadamard, truncated_normal
from strategies.algebra.philox import Seeds, spread
from strategies.algebra.projection import BASES, Coordinates, Projection
from strategies.algebra.tensors import Tensors

Matrix = NDArray[np.float64]
NAMES = sorted(BASES)


def columns(basis: str, seeds: Seeds, start: int, length: int, count: int) -> Matrix:
    """V (d, K) of the block at element `start`: coordinates are V^T x, what is rebuilt of them is V c."""
    if basis == "truncated-normal":
        drawn = [truncated_normal.vector(seeds.own, start, index, length) for index in range(count)]
        return torch.stack(drawn, 1).double().numpy()
    signs = hadamard.flipped(torch.ones(1, length), seeds.common, start)[0].double().numpy()
    places = spread(seeds.own, start + 1, length.bit_length() - 1, np.arange(count))
    return signs[:, None] * sylvester(length).astype(np.float64)[:, places]


def unit(basis: str, count: int, length: int) -> float:
    """1 / K, or 1 / (rho K) with rho by quadrature."""
    return 1 / count if basis == "hadamard" else 1 / (rho(length) * count)


def rho(length: int) -> float:
    """The variance of N(0, 1) cut off at a = 1 / sqrt(d): two integrals from 0 to a, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    x = (nodes + 1) / 2 / np.sqrt(length)
    density = weights * np.exp(-(x**2) / 2)
    return float((density * x**2).sum() / density.sum())


def flat(tensors: Tensors, projection: Projection) -> Matrix:
    """The vector of named tensors, filled up with zeros."""
    values = np.concatenate([tensors[name].double().numpy().reshape(-1) for name in projection.layout.names])
    return np.concatenate([values, np.zeros(sum(projection.layout.lengths) - len(values))])


def blocks(projection: Projection, counts: Matrix) -> Iterator[tuple[int, int, int, int]]:
    """(number, first element, length, coordinates) of every block."""
    for number, (length, count) in enumerate(zip(projection.layout.lengths, counts.tolist(), strict=True)):
        yield number, number * projection.layout.block, length, int(count)


def projected(projection: Projection, values: Matrix, seeds: Seeds, counts: Matrix) -> Matrix:
    """The coordinates of a vector, unit included."""
    parts = []
    for _, start, length, count in blocks(projection, counts):
        basis = columns(projection.basis, seeds, start, length, count)
        scale = length / count if projection.code else unit(projection.basis, count, length)
        parts.append(scale * basis.T @ values[start : start + length])
    return np.concatenate(parts)


def dense(projection: Projection, given: Coordinates, seeds: Seeds) -> Matrix:
    """The vector that coordinates stand for."""
    exact, parts, done = given.exact().numpy(), [], 0
    for _, start, length, count in blocks(projection, given.counts.numpy()):
        parts.append(columns(projection.basis, seeds, start, length, count) @ exact[done : done + count])
        done += count
    return np.concatenate(parts)


def rebuilt(projection: Projection, rows: list[Coordinates], seeds: list[Seeds]) -> Matrix:
    """What the code makes of coordinates, all blocks in a row."""
    made = [projection.rebuilt(rows, seeds, b, torch.device("cpu")) for b in projection.layout.groups()]
    return torch.cat([part.reshape(-1) for part in made]).double().numpy()

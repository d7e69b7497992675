"""The basis of Ferret's paper: vectors of truncated normal numbers.

Shu et al., "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", arXiv 2409.06277: v_k has d
entries from N(0, 1), truncated to [-a, a] with a = 1 / sqrt(d), of variance rho (Eq. 7), and

    coordinates gamma_k = v_k . x          rebuilt x~ = (1 / (rho K)) sum_k gamma_k v_k

E x~ = x (Theorem 1) and E ||x~ - x||^2 = ((d - 0.2) / K) ||x||^2. It costs O(d K). The entries are made on the CPU by
additions and multiplications of float64 in a fixed order, and vectors are added up one after the other, element by
element, so the bits are the same on every machine.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.algebra.philox import Seeds, words

SMALLEST = 1e-18  # of a series' terms that count, relative to the first
TERMS = 64


def coordinates(values: torch.Tensor, seeds: Seeds, start: int, counts: Sequence[int]) -> torch.Tensor:
    """Return coordinates of blocks (m, d) float32, the first of which begins at element `start` of the vector: `counts`
    of each block, in a row, float32."""
    found = torch.empty(sum(counts), dtype=torch.float64)
    places = iter(range(len(found)))
    for number, (block, count) in enumerate(zip(values.double(), counts, strict=True)):
        for index in range(count):
            drawn = vector(seeds.own, start + number * len(block), index, len(block)).to(values.device)
            found[next(places)] = torch.dot(block, drawn.double())
    return found.float().to(values.device)


def rebuilt(
    rows: Sequence[torch.Tensor], seeds: Sequence[Seeds], start: int, counts: Sequence[Sequence[int]], length: int
) -> torch.Tensor:
    """Return sum_i sum_k gamma_k^(i) v_k^(i), gamma^(i) the coordinates (K_i,) of node i, `counts` of each of its
    blocks: (m, length) float32 on the rows' device."""
    sums = torch.zeros(len(counts[0]), length, device=rows[0].device)
    for row, seed, own in zip(rows, seeds, counts, strict=True):
        scalars = iter(row.float())
        for number, count in enumerate(own):
            for index in range(count):
                drawn = vector(seed.own, start + number * length, index, length).to(row.device)
                sums[number] += drawn * next(scalars)  # a product, rounded, then a sum, rounded: nothing is fused
    return sums


def direction(seeds: Seeds, start: int, index: int, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return direction `index` of blocks of this shape (m, d), entries of variance 1: v_k / sqrt(rho)."""
    blocks, length = shape
    rows = [vector(seeds.own, start + number * length, index, length) for number in range(blocks)]
    return torch.stack(rows).to(device) * deviation(length)


def deviation(length: int) -> float:
    """Return the factor that makes a vector of the basis a direction: 1 / sqrt(rho)."""
    return 1 / math.sqrt(variance(length))


def unit(count: int, length: int) -> float:
    """Return 1 / (rho K)."""
    return 1 / (variance(length) * count)


def vector(seed: int, start: int, index: int, length: int) -> torch.Tensor:
    """Return v_k of the block of `length` elements at element `start`: (length,) float32 on the CPU."""
    count = -(-length // 8) * 4  # of words, two numbers each
    drawn = words(seed, start + 1, count * index, count).view(np.uint32)[:length].astype(np.float64)
    return torch.from_numpy(quantile((drawn + 0.5) * 2.0**-31 - 1.0, length).astype(np.float32))


def quantile(share: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return truncated normal numbers from uniform ones in (-1, 1): x with erf(x / sqrt 2) = share erf(a / sqrt 2)."""
    powers, top = _series(length)
    y = share * top
    square = y * y
    result = np.full_like(y, powers[-1])
    for coefficient in powers[-2::-1]:
        result = result * square + coefficient
    return result * y


@lru_cache
def _series(length: int) -> tuple[tuple[float, ...], float]:
    """Return the coefficients c_k of x = sum_k c_k y^(2k + 1), with y the integral of exp(-t^2 / 2) from 0 to x, as
    many as count; and that integral up to a.

    They are the coefficients of the inverse error function, whose bits differ between libraries.
    """
    square = 1 / length
    top, term = 0.0, math.sqrt(square)
    inner, coefficients = [1.0], [1.0]
    for k in range(TERMS):
        top += term / (2 * k + 1)
        term *= -square / (2 * (k + 1))
    for k in range(1, TERMS):
        inner.append(sum(inner[m] * inner[k - 1 - m] / ((m + 1) * (2 * m + 1)) for m in range(k)))
        coefficients.append(inner[k] / (2 * k + 1) / 2**k)
        if coefficients[k] * top ** (2 * k) < SMALLEST:
            break
    return tuple(coefficients), top


def variance(length: int) -> float:
    """Return rho, the variance of an entry: 1 - 2 a phi(a) / (2 Phi(a) - 1) with a = 1 / sqrt(d).

    That difference cancels for large d (a relative error of 5e-3 at 1e9 in float64), so its series is used from 100 on:
    a^2 / 3 - 2 a^4 / 45, off by less than 1e-6.
    """
    edge = 1 / math.sqrt(length)
    if length >= 100:
        return edge**2 / 3 - 2 * edge**4 / 45 + 2 * edge**6 / 945
    density = math.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi)
    return 1 - 2 * edge * density / math.erf(edge / math.sqrt(2))

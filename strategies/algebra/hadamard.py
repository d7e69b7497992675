"""The Hadamard basis: random signs, a fast Walsh-Hadamard transform, a random subset of its coordinates.

With D a diagonal of random signs, H the Hadamard matrix of order n (entries 1 and -1, H H = n I) and S the selection of
K coordinates (a + b k) mod n, a random and b odd, each coordinate as likely as any other:

    coordinates c = S H D x            rebuilt x~ = (1 / K) D H S^T c

E x~ = x, and E ||x~ - x||^2 = ((n - K) / K) ||x||^2. It costs O(n log n), whatever K. D is drawn from the common seed
and S from a node's own, so what nodes with different S sent is put into one vector, sum_i S_i^T c_i, and transformed
once. Their errors are still independent, because x~ is unbiased by S alone.

If c are integers whose magnitudes sum to less than 2^24, every partial sum of H S^T c is an integer that float32
represents exactly: any factorisation of H, number of threads, library and device gives the same bits.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from strategies.algebra.philox import Seeds, spread, words

EXACT = 1 << 24  # integers below it are exact in float32
SIGNS = 0  # the stream of signs; a block at element s draws its subset from stream s + 1
AXIS = 6  # a factor of the transform has at most order 2^6


def coordinates(values: torch.Tensor, seeds: Seeds, start: int, counts: Sequence[int]) -> torch.Tensor:
    """Return coordinates of blocks (m, n) float32, the first of which begins at element `start` of the vector, a
    multiple of 256: `counts` of each block, in a row, float32."""
    turned = transform(flipped(values, seeds.common, start))
    return turned.view(-1)[_places(seeds.own, start, counts, values.shape[1]).to(values.device)]


def rebuilt(
    rows: Sequence[torch.Tensor], seeds: Sequence[Seeds], start: int, counts: Sequence[Sequence[int]], length: int
) -> torch.Tensor:
    """Return sum_i D H S_i^T c_i, c_i the coordinates (K_i,) of node i, `counts` of each of its blocks: (m, length)
    float32 on the rows' device. The nodes' common seeds are one."""
    spread = torch.zeros(len(counts[0]) * length, device=rows[0].device)
    for row, seed, own in zip(rows, seeds, counts, strict=True):
        spread[_places(seed.own, start, own, length).to(row.device)] += row.float()
    return flipped(transform(spread.view(-1, length)), seeds[0].common, start)


def direction(seeds: Seeds, start: int, index: int, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return direction `index` of blocks of this shape (m, n), entries 1 and -1: D times a row of H, another in each
    block."""
    blocks, length = shape
    bits = length.bit_length() - 1
    rows = np.array([spread(seeds.own, start + n * length + 1, bits, np.array([index]))[0] for n in range(blocks)])
    signs = torch.ones(blocks, 1)
    for place in reversed(range(bits)):  # a row of H is a Kronecker product of (1, 1) and (1, -1), by its index's bits
        second = torch.from_numpy(1.0 - 2.0 * (rows >> place & 1)).float()
        signs = torch.stack([signs, signs * second[:, None]], 2).flatten(1)
    return flipped(signs.to(device), seeds.common, start)


def deviation(length: int) -> float:
    """Return the factor that makes a vector of the basis a direction."""
    return 1.0


def unit(count: int, length: int) -> float:
    """Return the factor that makes the rebuilt block unbiased."""
    return 1 / count


def flipped(values: torch.Tensor, seed: int, start: int) -> torch.Tensor:
    """Return D times blocks (m, n) that begin at element `start`, a multiple of 256."""
    drawn = words(seed, SIGNS, start // 64, -(-values.numel() // 64))
    bits = torch.from_numpy(drawn.view("int32")).to(values.device)
    shifts = torch.arange(32, dtype=torch.int32, device=values.device)
    signs = (bits[:, None] << shifts).bitwise_and_(-(1 << 31)).view(-1)[: values.numel()]
    return (values.view(torch.int32) ^ signs.view(values.shape)).view(torch.float32)


def transform(values: torch.Tensor, orders: Sequence[int] = ()) -> torch.Tensor:
    """Return H times every row of (m, n), n a power of two, by Kronecker factors of the given orders, whose product is
    n."""
    blocks, length = values.shape
    chosen = orders or _orders(length)
    with _full_precision():
        after = length
        for order in chosen:
            after //= order
            matrix = _matrix(order, str(values.device))  # symmetric, so it may multiply from either side
            values = values.view(-1, order) @ matrix if after == 1 else matrix @ values.view(-1, order, after)
    return values.view(blocks, length)


def _orders(length: int) -> list[int]:
    """Return powers of two, at most 2^6 and as equal as possible, whose product is the length."""
    bits = length.bit_length() - 1
    parts = max(1, math.ceil(bits / AXIS))
    return [1 << (bits // parts + (number < bits % parts)) for number in range(parts)]


@lru_cache(maxsize=32)
def _matrix(order: int, device: str) -> torch.Tensor:
    """Return the Hadamard matrix of Sylvester, float32."""
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.to(device)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 matrix products in float32: TF32 or bfloat16 inside would round integers."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _places(seed: int, start: int, counts: Sequence[int], length: int) -> torch.Tensor:
    """Return the positions of the coordinates of all blocks, from the first block on."""
    bits = length.bit_length() - 1
    places = [
        spread(seed, start + n * length + 1, bits, np.arange(count)) + n * length for n, count in enumerate(counts)
    ]
    return torch.from_numpy(np.concatenate(places))

"""Random words that are the same on every machine, in every process and whatever the order of calls.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) makes words from a key and a counter;
NumPy guarantees that the raw words of its bit generators do not change. Nothing here uses torch's generators, which
differ between CPU, CUDA and versions.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Seeds(NamedTuple):
    """The seeds of a basis: one that a cohort shares, and one of each node's own."""

    common: int
    own: int


PER_COUNTER = 4  # words per value of the counter


def words(seed: int, stream: int, start: int, count: int) -> NDArray[np.uint64]:
    """Return words start ... start + count - 1 of a stream (count,), uint64. Seed and stream are below 2^64, start is a
    multiple of 4."""
    source = np.random.Philox(key=[seed, stream], counter=[start // PER_COUNTER, 0, 0, 0])
    return source.random_raw(count)


def spread(seed: int, stream: int, bits: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return numbers below 2^bits, different ones for different `indices` below 2^bits: a + b i with a random a and odd
    b."""
    offset, factor = (int(word) for word in words(seed, stream, 0, PER_COUNTER)[:2])
    mask = (1 << bits) - 1
    chosen: NDArray[np.int64] = ((offset & mask) + ((factor | 1) & mask) * indices) & mask
    return chosen

"""Random numbers for privacy that nobody can reproduce: all bits come from the operating system's secure source.

There is no seed and no state to leak. With the noise, or the drawn cohort, known, the protection could be undone.
"""

import math
import random
import secrets
from collections.abc import Sequence

import numpy as np
import torch

CHUNK = 2**20  # numbers drawn at a time
WORD, MANTISSA = 8, 53  # bytes of a random word, bits of it that a float64 holds

system = random.SystemRandom()  # draws cohorts


def uniform(count: int) -> torch.Tensor:
    """Return `count` float64 numbers in (0, 1], each of 53 random bits."""
    words = np.frombuffer(secrets.token_bytes(WORD * count), dtype=np.uint64) >> np.uint64(64 - MANTISSA)
    return torch.from_numpy((words.astype(np.float64) + 1.0) * 2.0**-MANTISSA)


def normal(shape: Sequence[int], std: float) -> torch.Tensor:
    """Return a float64 tensor of independent normal numbers of mean 0, on the CPU.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958: the radius and the angle of a
    pair. No number is beyond 8.6 times `std`, which leaves out less than 1e-17 of the distribution.
    """
    flat = torch.empty(math.prod(shape), dtype=torch.float64)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        pairs = (len(part) + 1) // 2
        radius = uniform(pairs).log_().mul_(-2.0).sqrt_()
        angle = uniform(pairs).mul_(2.0 * math.pi)
        part.copy_(torch.cat([radius * angle.cos(), radius * angle.sin()])[: len(part)])
    return flat.mul_(std).reshape(tuple(shape))

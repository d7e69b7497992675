"""Numbers as small signed integers, with one scale for each block of consecutive numbers.

A block's scale s is its largest magnitude over the largest level L, rounded up to float32. Nearest rounding sends
round(v / s) and errs by at most s / 2. Stochastic rounding sends floor(v / s + u), u uniform in [0, 1): it errs by less
than s and is unbiased (Alistarh et al., "QSGD", arXiv 1610.02132, Section 3.1, with the largest magnitude as norm).
"""

from collections.abc import Callable

import torch
from torch.nn.functional import pad

from strategies.algebra.philox import words

GROUP = 1 << 20  # numbers per step, in float64
MULTIPLE = 8  # of numbers in a block: random words come four at a time, and each is two numbers
Noise = Callable[[int, int], torch.Tensor]


def blocks(total: int, block: int) -> int:
    """Return the number of blocks in `total` numbers."""
    return -(-total // block)


def quantised(values: torch.Tensor, block: int, largest: int, noise: Noise | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return levels (n,) int8 from -largest to largest, and scales (blocks,) float32, of values (n,).

    `noise(start, count)` returns the u of stochastic rounding; None rounds to nearest, halves to even.
    """
    levels = torch.empty(len(values), dtype=torch.int8)
    scales = torch.empty(blocks(len(values), block))
    step = max(1, GROUP // block) * block
    for start in range(0, len(values), step):
        piece = values[start : start + step].double()
        rows = pad(piece, (0, -len(piece) % block)).view(-1, block)
        own = _scales(rows.abs().amax(1), largest)
        exact = (rows / own.where(own > 0, 1.0).double()[:, None]).view(-1)[: len(piece)]
        whole = exact.round() if noise is None else (exact + noise(start, len(piece))).floor()
        levels[start : start + step] = whole.to(torch.int8)
        scales[start // block : start // block + len(own)] = own
    return levels, scales


def restored(levels: torch.Tensor, scales: torch.Tensor, block: int, dtype: torch.dtype) -> torch.Tensor:
    """Return level times scale (n,), in `dtype`; the product is float32, or float64 if `dtype` is."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows = pad(levels.to(wide), (0, -len(levels) % block)).view(-1, block)
    return (rows * scales.to(wide)[:, None]).view(-1)[: len(levels)].to(dtype)


def packed(levels: torch.Tensor) -> torch.Tensor:
    """Return levels (n,) from -8 to 7 as bytes (ceil(n / 2),): the first of each pair in the low half."""
    halves = pad(levels + 8, (0, len(levels) % 2), value=8).to(torch.uint8).view(-1, 2)
    return halves[:, 0] | halves[:, 1] << 4


def unpacked(pairs: torch.Tensor, total: int) -> torch.Tensor:
    """Return the levels (total,) that `packed` made bytes of."""
    halves = torch.stack([pairs & 15, pairs >> 4], dim=1).view(-1)[:total]
    return halves.to(torch.int8) - 8


def uniform(seed: int, stream: int) -> Noise:
    """Return multiples of 2^-32 in [0, 1), float64, the same on every machine; a start is a multiple of MULTIPLE."""

    def drawn(start: int, count: int) -> torch.Tensor:
        pairs = words(seed, stream, start // 2, blocks(count, MULTIPLE) * MULTIPLE // 2)
        halves = pairs[:, None] >> torch.tensor([0, 32]).numpy().astype("uint64") & 0xFFFFFFFF
        return torch.from_numpy(halves.reshape(-1)[:count].astype("float64")) * 2.0**-32

    return drawn


def _scales(magnitudes: torch.Tensor, largest: int) -> torch.Tensor:
    """Return the least float32 with scale * largest >= magnitude (float64), up to one step."""
    scales = (magnitudes / largest).float()
    short = scales.double() * largest < magnitudes
    return torch.where(short, torch.nextafter(scales, torch.tensor(torch.inf)), scales)

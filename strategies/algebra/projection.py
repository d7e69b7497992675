"""Seeded projection: a vector becomes a few integers, and is rebuilt with the same bits on every machine.

A vector of blocks (`Layout`) becomes K coordinates in a random basis that is drawn from a seed. Block l gets K_l of
them, in proportion to its norm (Shu et al., arXiv 2409.06277, Section 3.3), and they travel as 16-bit integers with one
scale per block. Both directions work on a few blocks at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.algebra import hadamard, truncated_normal
from strategies.algebra.layout import Layout
from strategies.algebra.philox import Seeds

BASES: dict[str, ModuleType] = {"hadamard": hadamard, "truncated-normal": truncated_normal}
LARGEST = 32767  # largest magnitude of a coordinate
SMALLEST = 1e-12  # of the largest norm: blocks that changed less are treated alike
HALVINGS = 100  # of an interval; float64 cannot be halved as often


@dataclass(frozen=True)
class Coordinates:
    """A projected vector: `numbers` (K,) int16, of which block l has the next `counts[l]` (L,) int32, to be multiplied
    by `scales[l]` (L,) float32."""

    numbers: torch.Tensor
    counts: torch.Tensor
    scales: torch.Tensor

    def exact(self) -> torch.Tensor:
        """Return the coordinates as numbers (K,) float64."""
        return self.numbers.double() * self.scales.double().repeat_interleave(self.counts)

    def of(self, blocks: range) -> tuple[torch.Tensor, list[int]]:
        """Return numbers and counts of some blocks."""
        counts = self.counts.tolist()
        begin = sum(counts[: blocks.start])
        own = counts[blocks.start : blocks.stop]
        return self.numbers[begin : begin + sum(own)], own


@dataclass(frozen=True)
class Projection:
    """The projection of a layout's vectors to coordinates and back. `basis` is a key of BASES; `total` is the number of
    coordinates."""

    layout: Layout
    basis: str
    total: int
    code: bool = False  # the scale of Ferret's published code, d / K instead of 1 / (rho K)

    def __post_init__(self) -> None:
        if not self.layout.count <= self.total <= sum(self.layout.lengths):
            raise ValueError(
                f"{self.layout.total:,} numbers in {self.layout.count} blocks of {self.layout.block:,} need at least a "
                f"coordinate for each block and at most {sum(self.layout.lengths):,}, not {self.total:,}"
            )

    def project(
        self,
        after: Mapping[str, torch.Tensor],
        before: Mapping[str, torch.Tensor],
        seeds: Seeds,
        counts: NDArray[np.int32] | None = None,
    ) -> Coordinates:
        """Return the coordinates of after - before; `before` is rounded first to the dtypes of `after`.

        `counts` (L,) are the coordinates per block; None: by norms. Raises ValueError if the change is not finite.
        """
        change = _Change(self.layout, after, before)
        # Results are allocated first: small lasting pieces between large temporary ones would fragment the memory.
        squares = torch.empty(self.layout.count, dtype=torch.float64)
        exact = torch.empty(self.total, dtype=torch.float64)
        for blocks in self.layout.groups():
            squares[blocks.start : blocks.stop] = change.squares(blocks)
        if not torch.isfinite(squares).all():
            raise ValueError("training left NaN or infinity in the model")
        counts = self.counts(squares.sqrt().numpy()) if counts is None else counts
        done = 0
        for blocks in self.layout.groups():
            own = counts[blocks.start : blocks.stop].tolist()
            found = self._basis.coordinates(change.read(blocks), seeds, blocks.start * self.layout.block, own)
            for part, count in zip(torch.split(found.cpu().double(), own), own, strict=True):
                exact[done : done + count] = part * self._unit(count, self.layout.lengths[blocks.start])
                done += count
        return from_exact(exact, torch.from_numpy(counts))

    def counts(self, norms: NDArray[np.float64] | None = None) -> NDArray[np.int32]:
        """Return the coordinates of every block (L,), for blocks of these norms; None: for all blocks alike."""
        return allotted(np.zeros(self.layout.count) if norms is None else norms, self.total, self.layout.lengths)

    def rebuilt(
        self, rows: Sequence[Coordinates], seeds: Sequence[Seeds], blocks: range, device: torch.device
    ) -> torch.Tensor:
        """Return these blocks (blocks, length) of the sum of the vectors that coordinates stand for, float32. The rows
        have the same scales, and with hadamard the same common seed."""
        cut = [row.of(blocks) for row in rows]
        numbers, counts = [part.to(device) for part, _ in cut], [own for _, own in cut]
        length, start = self.layout.lengths[blocks.start], blocks.start * self.layout.block
        sums = self._basis.rebuilt(numbers, seeds, start, counts, length)
        vectors: torch.Tensor = sums * rows[0].scales[blocks.start : blocks.stop].to(device)[:, None]
        return vectors

    def _unit(self, count: int, length: int) -> float:
        return length / count if self.code else float(self._basis.unit(count, length))

    @property
    def _basis(self) -> ModuleType:
        return BASES[self.basis]


@dataclass(frozen=True)
class _Change:
    """The change after - before, read by blocks."""

    layout: Layout
    after: Mapping[str, torch.Tensor]
    before: Mapping[str, torch.Tensor]

    def read(self, blocks: range) -> torch.Tensor:
        before = self.layout.read(self.before, blocks, like=self.after)
        after = self.layout.read(self.after, blocks)
        return after.sub_(before.to(after.device))

    def squares(self, blocks: range) -> torch.Tensor:
        """Return the squared norms of these blocks, in float64."""
        return self.read(blocks).square().sum(1, dtype=torch.float64)


def allotted(norms: NDArray[np.float64], total: int, lengths: Sequence[int]) -> NDArray[np.int32]:
    """Return how many of `total` coordinates each block gets (L,): in proportion to its norm, at least one, at most its
    length, rounded by largest remainders. If nothing has changed, in proportion to lengths."""
    most = np.array(lengths, np.float64)
    norms = np.maximum(norms / norms.max(), SMALLEST) if norms.any() else most
    low, high = 0.0, float((most / norms).max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = np.clip(middle * norms, 1, most).sum() <= total
        low, high = (middle, high) if fits else (low, middle)
    wish = np.clip(low * norms, 1, most)
    counts = np.floor(wish)
    first = np.argsort(-(wish - counts), kind="stable")
    first = first[counts[first] < most[first]][: total - int(counts.sum())]
    counts[first] += 1
    return counts.astype(np.int32)


def weighted(rows: Sequence[Coordinates], weights: Sequence[float]) -> list[Coordinates]:
    """Return each row times its weight, all with the same scales; a cohort's mean is rebuilt from them."""
    return _quantised(
        [weight * row.exact() for row, weight in zip(rows, weights, strict=True)], [r.counts for r in rows]
    )


def summed(rows: Sequence[Coordinates], weights: Sequence[float]) -> Coordinates:
    """Return the weighted sum of vectors that have coordinates in one basis: each block gets as many as in any row."""
    counts = most_counts(rows)
    exact = torch.zeros(int(counts.sum()), dtype=torch.float64)
    for row, weight in zip(rows, weights, strict=True):
        exact += weight * spread_out(row, counts)
    return from_exact(exact, counts)


def most_counts(rows: Sequence[Coordinates]) -> torch.Tensor:
    """Return the largest number of coordinates that each block has in any row (L,)."""
    return torch.stack([row.counts for row in rows]).amax(0)


def spread_out(row: Coordinates, counts: torch.Tensor) -> torch.Tensor:
    """Return the coordinates in float64 at the places of a row of so many a block; a vector has zeros beyond its
    own."""
    whole = torch.zeros(int(counts.sum()), dtype=torch.float64)
    begins, own = counts.cumsum(0) - counts, row.counts.cumsum(0) - row.counts
    whole[torch.arange(len(row.numbers)) + (begins - own).repeat_interleave(row.counts)] = row.exact()
    return whole


def from_exact(exact: torch.Tensor, counts: torch.Tensor) -> Coordinates:
    """Return coordinates (K,) float64, `counts` (L,) of each block, as integers with scales."""
    return _quantised([exact], [counts])[0]


def _quantised(rows: Sequence[torch.Tensor], counts: Sequence[torch.Tensor]) -> list[Coordinates]:
    """Return rows of coordinates (K,) float64 as integers with one scale per block, float32, that all rows share.

    Magnitudes stay below 2^15, and their sum over all rows of a block below 2^24: see `hadamard` for the reason.
    """
    blocks = [torch.arange(len(own)).repeat_interleave(own) for own in counts]
    size, block = torch.cat(list(rows)).abs(), torch.cat(blocks)
    zeros = torch.zeros(len(counts[0]), dtype=torch.float64)
    largest = zeros.scatter_reduce(0, block, size, "amax")
    total = zeros.index_add(0, block, size)
    slack = torch.stack(list(counts)).sum(0)  # rounding adds at most a half for each
    scales = torch.maximum(largest / LARGEST, total / (hadamard.EXACT - slack)).float()
    scales[scales < torch.finfo(torch.float32).tiny] = 0.0  # rounded too coarsely to be a bound
    inverse = torch.where(scales > 0, 1 / scales.double(), 0.0)
    return [
        Coordinates(
            (row * inverse[own]).round().clamp(-LARGEST, LARGEST).to(torch.int16), count.to(torch.int32), scales
        )
        for row, own, count in zip(rows, blocks, counts, strict=True)
    ]

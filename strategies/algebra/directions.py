"""K seeded directions over named tensors: any one of them, or a weighted sum of all, a few blocks at a time."""

from dataclasses import dataclass

import torch

from strategies.algebra.layout import Layout
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import BASES


@dataclass(frozen=True)
class Directions:
    """A set of `count` directions z_k with E z z^T = I. `basis` is a key of `projection.BASES`; blocks of `layout` are
    even."""

    layout: Layout
    basis: str
    count: int
    seed: int

    @property
    def seeds(self) -> Seeds:
        """Return the keys of the basis, which all nodes share."""
        return Seeds(self.seed, self.seed)

    def one(self, index: int, blocks: range, device: torch.device) -> torch.Tensor:
        """Return these blocks (blocks, length) of z_k, float32."""
        shape = (len(blocks), self.layout.block)
        drawn: torch.Tensor = BASES[self.basis].direction(self.seeds, self._start(blocks), index, shape, device)
        return drawn

    def combined(self, numbers: torch.Tensor, scale: torch.Tensor, blocks: range) -> torch.Tensor:
        """Return these blocks of scale * sum_k numbers_k z_k, float32, from numbers (K,) int16 and a scale (1,)
        float32."""
        basis, length = BASES[self.basis], self.layout.block
        counts = [self.count] * len(blocks)
        sums: torch.Tensor = basis.rebuilt(
            [numbers.repeat(len(blocks))], [self.seeds], self._start(blocks), [counts], length
        )
        vectors: torch.Tensor = sums * (scale * basis.deviation(length))
        return vectors

    def _start(self, blocks: range) -> int:
        return blocks.start * self.layout.block

"""Named tensors as one long vector in the order of their names, cut into blocks; read and written a few at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from task.storage.paging import release_pages

GROUP = 1 << 20  # elements per step; memory is a small multiple of it


@dataclass(frozen=True)
class Layout:
    """The positions of named tensors' elements in the vector. Blocks have `block` elements, a power of two."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    block: int
    even: bool = False  # whether the last block is filled up to the length of the others

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], block: int, even: bool = False) -> "Layout":
        """Return the layout of these tensors. Raises ValueError if `block` is not a power of two."""
        if block < 1 or block & (block - 1):
            raise ValueError(f"a block has a power of two of elements, not {block}")
        names = sorted(tensors)
        return cls(tuple(names), tuple(tensors[name].numel() for name in names), block, even)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Return where each tensor ends in the vector."""
        return tuple(accumulate(self.sizes))

    @property
    def total(self) -> int:
        """Return the number of elements in the vector."""
        return self.ends[-1] if self.ends else 0

    @property
    def count(self) -> int:
        """Return the number of blocks, including the last one, which may be shorter."""
        return -(-self.total // self.block)

    @property
    def lengths(self) -> list[int]:
        """Return the number of elements in every block; the last one is filled up with zeros to a power of two."""
        if self.even or not self.count:
            return [self.block] * self.count
        last = self.total - (self.count - 1) * self.block
        return [self.block] * (self.count - 1) + [1 << (last - 1).bit_length()]

    def groups(self) -> Iterator[range]:
        """Yield all blocks in turn, one group's worth at a time, all of one length."""
        whole = self.count if self.count and self.lengths[-1] == self.block else self.count - 1
        step = max(1, GROUP // self.block)
        for first in range(0, whole, step):
            yield range(first, min(first + step, whole))
            release_pages()  # of a long vector in a file, a group at a time is in memory
        if 0 <= whole < self.count:
            yield range(whole, self.count)

    def read(
        self, tensors: Mapping[str, torch.Tensor], blocks: range, like: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return these blocks (blocks, length) in float32 on the tensors' device, rounded first to the dtypes of
        `like`."""
        length = self.lengths[blocks.start]
        device = tensors[self.names[0]].device
        values = torch.zeros(len(blocks) * length, device=device)
        for name, own, place in self._pieces(blocks):
            piece = tensors[name].detach().reshape(-1)[own]
            values[place] = piece if like is None else piece.to(like[name].dtype)
        return values.view(len(blocks), length)

    def write(self, tensors: Mapping[str, torch.Tensor], blocks: range, values: torch.Tensor) -> None:
        """Write values (blocks, length) into the tensors, which must be contiguous, in their own dtypes."""
        flat = values.reshape(-1)
        for name, own, place in self._pieces(blocks):
            tensors[name].detach().view(-1)[own] = flat[place].to(tensors[name].dtype)

    def _pieces(self, blocks: range) -> Iterator[tuple[str, slice, slice]]:
        """Yield, for every tensor that lies in these blocks, its name, the place in it, and the place from the first
        block on."""
        start = blocks.start * self.block
        stop = min(blocks.stop * self.block, self.total)
        for name, size, end in zip(self.names, self.sizes, self.ends, strict=True):
            begin = end - size
            low, high = max(begin, start), min(end, stop)
            if low < high:
                yield name, slice(low - begin, high - begin), slice(low - start, high - start)

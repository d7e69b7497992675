"""Combinations that a few wild terms cannot move far, place by place, in memory that does not grow with their number.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", arXiv
1803.01498, Definitions 1 and 2: of n numbers of one place, the median, or the mean of what is left without the k
largest and the k smallest. Where no more than k of the numbers are wild (for the median: less than half), the result
lies between the smallest and the largest of the others. Both need all numbers of a place at once, so terms wait in a
file, and places are read from it some at a time.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.algebra.tensors import Tensors

AT_ONCE = 2**21  # numbers that are sorted at once
ROUNDING = 1e-9  # of a share: 0.1 of 30 is 3, not a little more
Columns = NDArray[np.float64]  # (terms, places)


class Spill:
    """Terms of named tensors in a file, which is gone when it is closed; in the folder for temporary files (TMPDIR).

    Terms may be smaller than `like` along any axis: they are then its leading corner, and zero elsewhere, as in a
    `WeightedSum`; names that a term lacks are zero too. A term takes 4 bytes a number, 8 where `like` has numbers that
    float32 does not hold.
    """

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        """`like` gives names, full shapes and the dtypes of results."""
        self._like = like
        exact = all(tensor.is_floating_point() and tensor.element_size() <= 4 for tensor in like.values())
        self._dtype = np.dtype(np.float32 if exact else np.float64)
        self._width = sum(tensor.numel() for tensor in like.values())
        self._file: Any = tempfile.TemporaryFile(prefix="thistledown-")  # noqa: SIM115 - see __exit__
        self.terms = 0

    def __enter__(self) -> "Spill":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, term: Mapping[str, torch.Tensor]) -> None:
        """Append a term; names that `like` lacks are a KeyError."""
        if strange := term.keys() - self._like.keys():
            raise KeyError(sorted(strange)[0])
        for name, tensor in self._like.items():
            whole = np.zeros(tuple(tensor.shape), self._dtype)
            if name in term:
                own = term[name].detach().cpu()
                whole[tuple(map(slice, own.shape))] = own.to(torch.float64).numpy()
            self._file.write(whole.tobytes())
        self.terms += 1

    def reduced(self, rule: Callable[[Columns], NDArray[np.float64]], at_once: int = AT_ONCE) -> Tensors:
        """What `rule` makes of every place, (terms, places) to (places,), in the dtypes of `like`."""
        flat = np.empty(self._width)
        step = max(1, at_once // max(1, self.terms))
        for start in range(0, self._width, step):
            stop = min(start + step, self._width)
            flat[start:stop] = rule(self._columns(start, stop))
        reduced, done = {}, 0
        for name, tensor in self._like.items():
            own = torch.from_numpy(flat[done : done + tensor.numel()]).reshape(tensor.shape)
            reduced[name] = own.to(tensor.dtype, copy=True)
            done += tensor.numel()
        return reduced

    def _columns(self, start: int, stop: int) -> Columns:
        columns = np.empty((self.terms, stop - start))
        size = self._dtype.itemsize
        for term in range(self.terms):
            self._file.seek((term * self._width + start) * size)
            columns[term] = np.frombuffer(self._file.read((stop - start) * size), self._dtype)
        return columns


def cut(share: float, terms: int) -> int:
    """How many are left out at each end: a share of the terms, rounded up, as long as one is left."""
    return min(math.ceil(share * terms - ROUNDING), (terms - 1) // 2)


def trimmed_mean(columns: Columns, share: float) -> NDArray[np.float64]:
    """The mean of each column without its `cut(share, terms)` largest and smallest."""
    k = cut(share, len(columns))
    ordered = np.sort(columns, axis=0)  # so that the order of terms does not show in the sum either
    mean: NDArray[np.float64] = ordered[k : len(columns) - k].mean(axis=0)
    return mean


def median(columns: Columns) -> NDArray[np.float64]:
    """The middle of each column; of an even number of terms the mean of the two in the middle."""
    middle: NDArray[np.float64] = np.median(columns, axis=0)
    return middle

"""Robust combinations: a few extreme terms cannot move them far, and memory does not grow with the number of terms.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", arXiv
1803.01498, Definitions 1 and 2: of n numbers at one place, the median, or the mean without the k largest and the k
smallest. If at most k of the numbers are extreme (for the median: less than half), the result lies between the smallest
and the largest of the others. Both need all numbers of a place at once, so terms wait in a file and are read a few
places at a time.

Terms need not have every number. A place is combined over the terms that have it: the others are absent, which is not
zero.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.algebra.tensors import Tensors

AT_ONCE = 2**21  # numbers that are sorted at once
ROUNDING = 1e-9  # of a share: 0.1 of 30 is 3, not slightly more
Columns = NDArray[np.float64]  # (terms, places)
Rule = Callable[[Columns], NDArray[np.float64]]  # to (places,)


@dataclass(frozen=True)
class Settled:
    """The result of a rule at every place, in float64: the `numbers`, zero where too few terms have one, and the
    `share` of all terms that have one."""

    numbers: Tensors
    share: Tensors

    def over_owners(self, like: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the numbers, in the dtypes of `like`."""
        return {name: self.numbers[name].to(tensor.dtype) for name, tensor in like.items()}

    def over_all(self, like: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the numbers times the share, as if a term that lacks a number had a zero and the rule were a mean."""
        return {name: (self.share[name] * self.numbers[name]).to(tensor.dtype) for name, tensor in like.items()}

    def padded(self, start: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the change of `start`, if terms are changes of it and a term that lacks a number has a zero there."""
        change: Tensors = {}
        for name, tensor in start.items():
            kept = self.share[name] - 1  # exactly zero where every term has the number
            change[name] = (self.share[name] * self.numbers[name] + kept * tensor.double()).to(tensor.dtype)
        return change


Settle = Callable[[Mapping[str, torch.Tensor], Iterable[Mapping[str, torch.Tensor]]], Settled]


def settled(rule: Rule, least: int, like: Mapping[str, torch.Tensor], terms: Iterable[Tensors]) -> Settled:
    """Return the result of `rule` at every place of `terms`, which are read once, as they arrive; see
    `Spill.reduced`."""
    with Spill(like) as spill:
        for term in terms:
            spill.add(term)
        return spill.reduced(rule, least)


class Spill:
    """A temporary file of terms, which are named tensors; it is deleted when closed. It lies in the folder for
    temporary files (TMPDIR).

    Terms may be smaller than `like` along any axis: they then have the numbers of its leading corner, as a factor of
    smaller rank does, and lack the others; they may lack whole names. A term takes 4 bytes a number, 8 if `like` has
    numbers that float32 cannot represent. Absent numbers are NaN in the file; no term contains NaN.
    """

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        """Open an empty file; `like` has the names, full shapes and dtypes of the results."""
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
        """Append a term. Raises KeyError for names that `like` lacks."""
        if strange := term.keys() - self._like.keys():
            raise KeyError(sorted(strange)[0])
        for name, tensor in self._like.items():
            whole = np.full(tuple(tensor.shape), np.nan, self._dtype)
            if name in term:
                own = term[name].detach().cpu()
                whole[tuple(map(slice, own.shape))] = own.to(torch.float64).numpy()
            self._file.write(whole.tobytes())
        self.terms += 1

    def reduced(self, rule: Rule, least: int = 1, at_once: int = AT_ONCE) -> Settled:
        """Return the result of `rule` at every place, over the terms that have a number there; zero where these are
        fewer than `least` (or than all terms, if there are fewer)."""
        numbers, share = np.zeros(self._width), np.ones(self._width)
        step = max(1, at_once // max(1, self.terms))
        for start in range(0, self._width, step):
            columns = self._columns(start, min(start + step, self._width))
            place = slice(start, start + columns.shape[1])
            numbers[place], owners = _over_owners(rule, columns, min(least, self.terms))
            share[place] = owners / max(1, self.terms)
        return Settled(self._named(numbers), self._named(share))

    def _named(self, flat: NDArray[np.float64]) -> Tensors:
        sizes = [tensor.numel() for tensor in self._like.values()]
        parts = torch.split(torch.from_numpy(flat), sizes)
        return {name: part.reshape(self._like[name].shape) for name, part in zip(self._like, parts, strict=True)}

    def _columns(self, start: int, stop: int) -> Columns:
        columns = np.empty((self.terms, stop - start))
        size = self._dtype.itemsize
        for term in range(self.terms):
            self._file.seek((term * self._width + start) * size)
            columns[term] = np.frombuffer(self._file.read((stop - start) * size), self._dtype)
        return columns


def _over_owners(rule: Rule, columns: Columns, least: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rule over the numbers present in each column, and their share; absent numbers are NaN."""
    owners = len(columns) - np.isnan(columns).sum(axis=0)
    numbers = np.zeros(columns.shape[1])
    if (owners < len(columns)).any():
        columns = np.sort(columns, axis=0)  # sorts absent numbers last
    for count in np.unique(owners[owners >= max(1, least)]):
        whole = owners == count
        numbers[whole] = rule(columns[:count, whole])
    return numbers, owners


def cut(share: float, terms: int) -> int:
    """Return how many numbers are left out at each end: a share of the terms, rounded up, as long as one remains."""
    return min(math.ceil(share * terms - ROUNDING), (terms - 1) // 2)


def trimmed_mean(columns: Columns, share: float) -> NDArray[np.float64]:
    """Return the mean of each column without its `cut(share, terms)` largest and smallest."""
    k = cut(share, len(columns))
    ordered = np.sort(columns, axis=0)  # so that the order of terms does not affect the sum either
    mean: NDArray[np.float64] = ordered[k : len(columns) - k].mean(axis=0)
    return mean


def median(columns: Columns) -> NDArray[np.float64]:
    """Return the middle of each column; for an even number of terms, the mean of the two in the middle."""
    middle: NDArray[np.float64] = np.median(columns, axis=0)
    return middle

"""Pairs of low-rank factors: A is rank x inputs, B is outputs x rank, the adapter adds scaling * B A."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch

from strategies.algebra.tensors import Tensors


def rank_axis(name: str) -> int | None:
    """Return the axis that counts ranks: 0 in A, 1 in B, None in anything else."""
    return 0 if ".lora_A." in name else 1 if ".lora_B." in name else None


def owned(weights: Mapping[int, float], rank: int) -> torch.Tensor:
    """Return the total weight of the nodes that have each slice (rank,), float64, given the weight of all nodes of each
    rank."""
    return torch.tensor([sum(w for own, w in weights.items() if own > k) for k in range(rank)], dtype=torch.float64)


def truncated(tensors: Mapping[str, torch.Tensor], rank: int) -> Tensors:
    """Return the leading `rank` slices of every factor, and other tensors unchanged. Views, not copies."""
    small: Tensors = {}
    for name, tensor in tensors.items():
        axis = rank_axis(name)
        keep = tensor.shape[axis] if axis is not None else 0
        small[name] = tensor if axis is None or rank >= keep else tensor.narrow(axis, 0, rank)
    return small


def zero_ranks_above(tensors: Mapping[str, torch.Tensor], rank: int) -> Tensors:
    """Return the tensors with B zero beyond `rank`, so that the slices there add nothing."""
    return {
        name: tensor.index_fill(1, torch.arange(rank, tensor.shape[1]), 0.0)
        if rank_axis(name) == 1 and tensor.shape[1] > rank
        else tensor
        for name, tensor in tensors.items()
    }


def non_lora(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the tensors that are no factors."""
    return {name: tensor for name, tensor in tensors.items() if rank_axis(name) is None}


def modules(names: Iterable[str]) -> list[str]:
    """Return the modules that factors among `names` belong to, in order of first appearance."""
    found = (name.split(".lora_", 1)[0] for name in names if rank_axis(name) is not None)
    return list(dict.fromkeys(found))


def factor_names(module: str) -> tuple[str, str]:
    """Return the names of B and A of a module."""
    return f"{module}.lora_B.weight", f"{module}.lora_A.weight"


def pair(tensors: Mapping[str, torch.Tensor], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B and A of a module."""
    b, a = factor_names(module)
    return tensors[b], tensors[a]


FLOAT32 = 1e-7  # of a product's norm: a smaller rest is float32 rounding
NEGLIGIBLE = 1e-10  # of the largest singular value: smaller ones are rounding
INDEPENDENT = 1e-3  # length of what a row adds to others; anything less is mostly rounding


def products(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Return what `ProductSum.parts` wrote: the name of a linear layer's weight, and a matrix (float64) to add to
    it."""
    for module in modules(tensors):
        b, a = pair(tensors, module)
        yield f"{module}.weight", b.double() @ a.double()
    for name, tensor in tensors.items():
        if rank_axis(name) is None:
            yield name, tensor.double()


def merged_pair(tensors: Mapping[str, torch.Tensor], module: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return what `ProductSum.parts` wrote for a module, as B and A; None if it wrote nothing."""
    if (matrix := tensors.get(f"{module}.weight")) is not None:
        return matrix, torch.eye(matrix.shape[1])
    b, a = (tensors.get(name) for name in factor_names(module))
    return None if b is None or a is None else (b, a)


class ProductSum:
    """A running sum of c * B A that is kept as factors, never as a matrix.

    Terms are stacked: [c_1 B_1, c_2 B_2, ...] [A_1; A_2; ...]. If the stack grows beyond twice the smaller side of the
    product, it is rewritten by QR with that side as its rank, so memory does not grow with the number of terms.
    Everything is float64.
    """

    def __init__(self) -> None:
        self._left: list[torch.Tensor] = []  # each outputs x rank
        self._right: list[torch.Tensor] = []  # each rank x inputs

    @classmethod
    def of(cls, b: torch.Tensor, a: torch.Tensor) -> "ProductSum":
        """Return the sum of one term, b @ a."""
        product = cls()
        product.add(1.0, b, a)
        return product

    def add(self, coefficient: float, b: torch.Tensor, a: torch.Tensor) -> None:
        """Add `coefficient` * b @ a; b is outputs x rank, a is rank x inputs."""
        self._left.append(coefficient * b.detach().cpu().double())
        self._right.append(a.detach().cpu().double())
        if sum(part.shape[0] for part in self._right) > 2 * min(b.shape[0], a.shape[1]):
            self._rewrite()

    def add_sum(self, coefficient: float, other: "ProductSum") -> None:
        """Add `coefficient` times another sum of products of the same shape."""
        for left, right in zip(other._left, other._right, strict=True):
            self.add(coefficient, left, right)

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """Return the sum @ right (outputs x any), for `right` of inputs x any; float64."""
        pairs = zip(self._left, self._right, strict=True)
        return torch.stack([left @ (own @ right.double()) for left, own in pairs]).sum(dim=0)

    def norm(self) -> float:
        """Return the Frobenius norm of the sum."""
        _, core, _ = self._reduced()
        return float(torch.linalg.matrix_norm(core))

    def plus(self, coefficient: float, b: torch.Tensor, a: torch.Tensor) -> "ProductSum":
        """Return a sum with one more term; this one does not change."""
        longer = ProductSum()
        longer._left, longer._right = list(self._left), list(self._right)
        longer.add(coefficient, b, a)
        return longer

    def parts(self, module: str, coefficient: float = 1.0, floor: float = 0.0, energy: float = 1.0) -> Tensors:
        """Return `coefficient` times the sum in float32, by names of `module`: as factors, as one matrix if that is
        smaller, as nothing if no singular value is above `floor`. `products` reads it back.

        With `energy` below 1 it is the best approximation of the smallest rank that has this share of the sum of
        squared singular values.
        """
        left, core, right = self._reduced()
        u, s, vh = torch.linalg.svd(core)
        kept = int((s > max(floor, NEGLIGIBLE * float(s.max()))).sum())
        if energy < 1:
            share = (s**2).cumsum(0) / (s**2).sum().clamp(min=1e-300)
            kept = min(kept, int((share < energy).sum()) + 1)
        if not kept:
            return {}
        b, a = (left @ u[:, :kept] * (coefficient * s[:kept])), vh[:kept] @ right
        if b.numel() + a.numel() < b.shape[0] * a.shape[1]:
            return dict(zip(factor_names(module), (b.float(), a.float()), strict=True))
        return {f"{module}.weight": (b @ a).float()}

    def split(self, rank: int, spare: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best B (outputs x rank) and A (rank x inputs) of this rank: B = U S, A = V^T (Eckart and Young).

        Rows of A are orthonormal, with their largest entry positive. If the sum lacks ranks, B is zero there, and A has
        the directions that the rows of `spare` add to the others, so that these ranks can learn.
        """
        left, core, right = self._reduced()
        u, s, vh = torch.linalg.svd(core)
        kept = min(rank, int((s > NEGLIGIBLE * s.max()).sum()))
        rows = vh[:kept] @ right
        signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
        b = left.new_zeros(left.shape[0], rank)
        b[:, :kept] = left @ u[:, :kept] * s[:kept] * signs.T
        return b, _completed(signs * rows, rank, spare.detach().cpu().double())

    def _reduced(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return orthonormal left, a small core and orthonormal right factors, whose product is the sum."""
        left, left_core = torch.linalg.qr(torch.cat(self._left, dim=1))
        right, right_core = torch.linalg.qr(torch.cat(self._right, dim=0).T)
        return left, left_core @ right_core.T, right.T

    def _rewrite(self) -> None:
        left, core, right = self._reduced()
        narrow = left.shape[1] <= right.shape[0]
        self._left, self._right = ([left], [core @ right]) if narrow else ([left @ core], [right])


def _completed(rows: torch.Tensor, rank: int, spare: torch.Tensor) -> torch.Tensor:
    """Extend `rows` (orthonormal) to `rank` rows: from `spare`, then from the axes, by Gram and Schmidt."""
    candidates = iter(torch.cat([spare, torch.eye(rows.shape[1], dtype=rows.dtype)]))
    while rows.shape[0] < rank:
        row = next(candidates, None)
        if row is None:  # more ranks than inputs: there is nothing to add
            return torch.cat([rows, rows.new_zeros(rank - rows.shape[0], rows.shape[1])])
        for _ in range(2):  # twice is enough for full precision
            row = row - (row @ rows.T) @ rows
        if float(row.norm()) > INDEPENDENT:
            rows = torch.cat([rows, row[None] / row.norm()])
    return rows


class ProductSums:
    """The weighted sums of the products B A of every module, over adapters that are added one by one."""

    def __init__(self) -> None:
        self.sums: dict[str, ProductSum] = defaultdict(ProductSum)  # by module
        self.weight = 0.0

    def add(self, weight: float, tensors: Tensors) -> None:
        """Add `weight` times the products of the factors among these tensors."""
        for module in modules(tensors):
            self.sums[module].add(weight, *pair(tensors, module))
        self.weight += weight

    def residual(self, module: str, b: torch.Tensor, a: torch.Tensor) -> ProductSum:
        """Return the sum of a module's products minus the whole weight times b @ a."""
        return self.sums[module].plus(-self.weight, b, a)

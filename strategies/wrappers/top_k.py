"""Top-k: only the numbers of the largest magnitude in an update are sent, with their places; the others wait.

Aji and Heafield, "Sparse Communication for Distributed Gradient Descent", arXiv 1704.05021; Stich et al., "Sparsified
SGD with Memory", arXiv 1809.07599 (the operator top_k, Definition 2.1, and Algorithm 1): k numbers of the whole update
are sent unchanged, with one threshold over all floating tensors. Numbers that are not sent are added to the node's next
update (`strategies/algebra/feedback.py`). Among equal magnitudes the first is sent, by name and place. Places are
32-bit integers, or one bit for every number if that takes fewer bytes: from a share of 1/32 on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch

from strategies.algebra.sparse import code_form, coded, decoded, largest
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment, Refused
from strategies.wrappers.parts.compression import Compression
from task.schema import option

VALUES, PLACES = "top-k/values", "top-k/places"
ROUNDING = 1e-9  # of a share: 0.1 of 30 is 3, not slightly more


@dataclass(frozen=True)
class TopK(Compression):
    """Top-k: `fraction` of the numbers of an update are sent, rounded up; 1 sends the whole update."""

    fraction: float = option(
        0.1, low=1e-6, high=1.0, doc="of the numbers of an update, those of largest magnitude, that are sent"
    )

    additive_across_rounds = False
    leaves_out = True

    def encoded(self, wanted: Tensors, like: Mapping[str, torch.Tensor], assignment: Assignment) -> Tensors:
        plan = _Plan.of(like, self.fraction)
        if plan.whole:
            return {name: tensor.to(like[name].dtype) for name, tensor in wanted.items()}
        flat = torch.cat([wanted[name].reshape(-1) for name in plan.names])
        places = largest(flat, plan.count)
        others = {name: tensor for name, tensor in wanted.items() if name not in plan.names}
        return others | {VALUES: flat[places].to(plan.dtype), PLACES: coded(places, plan.total)}

    def encoded_spec(self, like: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        plan = _Plan.of(like, self.fraction)
        if plan.whole:
            return like
        length, dtype = code_form(plan.count, plan.total)
        return {name: tensor for name, tensor in like.items() if name not in plan.names} | {
            VALUES: torch.empty(plan.count, dtype=plan.dtype, device="meta"),
            PLACES: torch.empty(length, dtype=dtype, device="meta"),
        }

    def decode(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        plan = _Plan.of(like, self.fraction)
        if plan.whole:
            return sent
        try:
            places = decoded(sent[PLACES], plan.count, plan.total)
        except ValueError as error:
            raise Refused(f"'{PLACES}' {error}") from error
        flat = torch.zeros(plan.total, dtype=plan.dtype)
        flat[places] = sent[VALUES]
        update = {name: tensor for name, tensor in sent.items() if name not in (VALUES, PLACES)}
        for name, own in zip(plan.names, torch.split(flat, list(plan.sizes)), strict=True):
            update[name] = own.reshape(like[name].shape).to(like[name].dtype)
        return update


@dataclass(frozen=True)
class _Plan:
    """The floating tensors of an update as one vector, in the order of their names, and how much of it is sent."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype  # of the code's numbers
    count: int

    @classmethod
    def of(cls, like: Mapping[str, torch.Tensor], fraction: float) -> "_Plan":
        names = tuple(sorted(name for name, tensor in like.items() if tensor.is_floating_point()))
        sizes = tuple(like[name].numel() for name in names)
        dtypes = {like[name].dtype for name in names}
        dtype = dtypes.pop() if len(dtypes) == 1 else reduce(torch.promote_types, dtypes, torch.float32)
        return cls(names, sizes, dtype, math.ceil(fraction * sum(sizes) - ROUNDING))

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def whole(self) -> bool:
        return self.count >= self.total

"""Updates travel in 16 bits: half the bytes up, for a rounding error of at most 2^-8 (bfloat16) of each value."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment
from strategies.exchange.wrapper import Wrapper
from task.schema import option

WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Half(Wrapper):
    """16-bit updates: wide floats are rounded on the node and widened on the server.

    float16 is finer (2^-11) but overflows beyond 65,504; such an update is refused as infinite.
    """

    encodes = True

    dtype: str = option(
        "bfloat16", choices=("bfloat16", "float16"), doc="16-bit type that updates travel in: bfloat16 or float16"
    )

    def encode(self, update: Tensors, assignment: Assignment, client_state: Tensors) -> Tensors:
        return {name: t.to(self._narrow) if t.dtype in WIDE else t for name, t in update.items()}

    def encoded_spec(self, like: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {
            n: torch.empty(t.shape, dtype=self._narrow, device="meta") if t.dtype in WIDE else t
            for n, t in like.items()
        }

    def decode(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        return {name: t.to(like[name].dtype) for name, t in sent.items()}

    @property
    def _narrow(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float16

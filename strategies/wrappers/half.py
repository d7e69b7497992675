"""Updates travel in 16 bits: half the bytes up, for a rounding error of at most 2^-8 (bfloat16) of each value."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.vocabulary import Ticket
from strategies.exchange.wrapper import Wrapper
from task.schema import option

WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Half(Wrapper):
    """Round wide floats to 16 bits on the node, widen them on the server.

    float16 is finer (2^-11) but overflows beyond 65,504; such an update is refused as infinite.
    """

    dtype: str = option("bfloat16", choices=("bfloat16", "float16"))

    def outgoing(self, update: Tensors, ticket: Ticket) -> Tensors:
        narrow = getattr(torch, self.dtype)
        return {name: t.to(narrow) if t.dtype in WIDE else t for name, t in update.items()}

    def incoming(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        narrow = getattr(torch, self.dtype)
        return {
            n: t.to(like[n].dtype) if n in like and like[n].dtype in WIDE and t.dtype == narrow else t
            for n, t in sent.items()
        }

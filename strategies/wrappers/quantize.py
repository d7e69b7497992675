"""Quantization: updates travel in 8 or 4 bits a number, with error feedback, at about a quarter or an eighth of the
bytes of float32.

Every block of `block` consecutive numbers of a tensor has a scale, given by its largest magnitude
(`strategies/algebra/quantiser.py`). Stochastic rounding is unbiased; its random numbers are drawn by Philox from the
assignment's seed, so they are the same on every machine. What was rounded off is added to the node's next update
(`strategies/algebra/feedback.py`). Only floating tensors are quantised. All levels travel as one array and all scales
as another, because a line in the index would cost more than the scale of a small tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from strategies.algebra.quantiser import MULTIPLE, blocks, packed, quantised, restored, uniform, unpacked
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.types import Assignment, Refused
from strategies.exchange.wrapper import Wrapper
from strategies.wrappers.half import Half
from strategies.wrappers.parts.compression import Compression
from task.config import TaskConfig
from task.schema import option
from task.seeds import derive

LEVELS, SCALES = "quantize/levels", "quantize/scales"
LARGEST = {8: 127, 4: 7}  # level, by bits


@dataclass(frozen=True)
class Quantize(Compression):
    """`bits` per number (8 or 4), `block` numbers per scale, `rounding` at random or to the nearest level."""

    bits: int = option(8, low=4, high=8, doc="that a number of an update travels in: 8 or 4")
    block: int = option(128, low=MULTIPLE, high=2**20, doc="consecutive numbers that share a scale; a multiple of 8")
    rounding: str = option("stochastic", choices=("stochastic", "nearest"), doc="stochastic (unbiased) or nearest")

    sends_code = True

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence[Wrapper]
    ) -> list[str]:
        found = super().problems(strategy, config, federation, inner)
        if self.bits not in LARGEST:
            found.append(f"quantize.bits must be 8 or 4, not {self.bits}")
        if self.block % MULTIPLE:
            found.append(f"quantize.block = {self.block} is not a multiple of {MULTIPLE}")
        if any(isinstance(wrapper, Half) for wrapper in inner):
            found.append("wrappers: 'half' before 'quantize' rounds twice and saves nothing: leave it out")
        return found

    def encoded(self, wanted: Tensors, like: Mapping[str, torch.Tensor], assignment: Assignment) -> Tensors:
        sent, chosen = _split(wanted)
        if not chosen:
            return sent
        seed = derive(assignment.seed, "quantize")
        parts = [
            quantised(
                tensor.reshape(-1),
                self.block,
                LARGEST[self.bits],
                uniform(seed, stream) if self.rounding == "stochastic" else None,
            )
            for stream, tensor in enumerate(chosen.values())
        ]
        levels, scales = (torch.cat(column) for column in zip(*parts, strict=True))
        return sent | {LEVELS: packed(levels) if self.bits == 4 else levels, SCALES: scales}

    def encoded_spec(self, like: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        others, chosen = _split(like)
        if not chosen:
            return like
        sizes = [tensor.numel() for tensor in chosen.values()]
        length, dtype = (blocks(sum(sizes), 2), torch.uint8) if self.bits == 4 else (sum(sizes), torch.int8)
        scales = sum(blocks(size, self.block) for size in sizes)
        return others | {
            LEVELS: torch.empty(length, dtype=dtype, device="meta"),
            SCALES: torch.empty(scales, dtype=torch.float32, device="meta"),
        }

    def decode(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        update, chosen = _split(like)
        update = {name: sent[name] for name in update}
        if not chosen:
            return update
        sizes = [tensor.numel() for tensor in chosen.values()]
        levels = unpacked(sent[LEVELS], sum(sizes)) if self.bits == 4 else sent[LEVELS]
        if bool((levels < -LARGEST[self.bits]).any()):
            raise Refused(f"'{LEVELS}' holds a level below -{LARGEST[self.bits]}")
        if bool((sent[SCALES] < 0).any()):
            raise Refused(f"'{SCALES}' holds a negative number")
        scales = torch.split(sent[SCALES], [blocks(size, self.block) for size in sizes])
        for (name, tensor), own, scale in zip(chosen.items(), torch.split(levels, sizes), scales, strict=True):
            update[name] = restored(own, scale, self.block, tensor.dtype).reshape(tensor.shape)
        return update


def _split(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
    """Return the tensors that pass unchanged, and those that are quantised, in the order of their names."""
    floating = {name: tensors[name] for name in sorted(tensors) if tensors[name].is_floating_point()}
    return {name: tensor for name, tensor in tensors.items() if name not in floating}, floating

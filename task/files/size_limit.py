"""A limit on the size of a model in relation to its weights.

Libraries build a model without memory for its numbers before they load weights. The limit counts what is built then, so
settings with a hidden size of 10^9 are refused before anything of that size exists.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.nn.modules import module as hooks

from task.files.contents import BaseError

TIMES = 4  # a tied embedding is built up to four times before it is tied
FREE = 2**25  # additional numbers: heads that the base lacks, positions, masks
MODULES, SMALL = 10, 2000  # modules per tensor of the weights, and additional ones


@contextmanager
def no_larger_than(weights: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Limit the modules that this thread builds within this block: `TIMES` the numbers of these shapes plus `FREE`, in
    not many more modules than there are tensors. Raises BaseError."""
    numbers, most = sum(map(math.prod, weights.values())), MODULES * len(weights) + SMALL
    thread, limit, seen, modules = threading.get_ident(), TIMES * numbers + FREE, 0, 0

    def tensor(_: object, name: str, value: torch.Tensor | None) -> None:
        nonlocal seen
        if threading.get_ident() == thread and value is not None:
            seen += value.numel()
            if seen > limit:
                problem = "its settings ask for a model far larger than its weights"
                raise BaseError(f"{problem}, which are {numbers} numbers (at '{name}')", f"the base: {problem}")

    def module(*_: object) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            if modules > most:
                problem = "its settings ask for far more modules than it has weights for"
                raise BaseError(f"{problem}: more than {most} for {len(weights)} tensors", f"the base: {problem}")

    handles = [
        hooks.register_module_parameter_registration_hook(tensor),
        hooks.register_module_buffer_registration_hook(tensor),
        hooks.register_module_module_registration_hook(module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

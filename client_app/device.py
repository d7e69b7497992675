"""The node's device: which dtypes it trains in, how much memory is free, and what happens when memory runs out."""

import gc
import logging
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import TypeVar

import psutil
import torch

from strategies.exchange.types import OutOfMemory
from task.container import bounded, memory_left
from task.device import kind, ran_out
from task.models.model import kept_model
from task.training.batches import Unsuited

OWN_MEMORY = ("cuda", "xpu")  # those with memory of their own, which torch counts
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOG = logging.getLogger("flwr")
T = TypeVar("T")
_fitting: dict[Hashable, int] = {}  # rows of a step that were in memory at a time when training last succeeded


def free_memory(device: str) -> int:
    """Return the bytes that are free for training: the accelerator's own, else the machine's available RAM, or what the
    container leaves of it."""
    if kind(device) in OWN_MEMORY:
        torch.get_device_module(kind(device)).empty_cache()  # memory that torch caches is free too
        return int(torch.get_device_module(kind(device)).mem_get_info(device)[0])
    machine, container = int(psutil.virtual_memory().available), memory_left()
    return machine if container is None else min(machine, container)


def dtypes(device: str) -> list[str]:
    """Return the names of the dtypes that the device trains in, found by a small product and its gradient."""
    return [str(dtype).removeprefix("torch.") for dtype in DTYPES if _trains(dtype, device)]


def within_memory(device: str, work: Callable[[], T]) -> T:
    """Return what `work` returns. Raises OutOfMemory if memory runs out, a container's memory included.

    Then nothing that it allocated stays, nor does the process's model, which may be half trained or half built.
    """
    try:
        with bounded() if kind(device) == "cpu" else nullcontext():
            return work()
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        said = str(error) or type(error).__name__
    kept_model.cache_clear()  # after the except clause, whose traceback holds what training allocated
    gc.collect()
    if kind(device) != "cpu":
        torch.get_device_module(kind(device)).empty_cache()
    raise OutOfMemory(said)


def with_fewer_rows(device: str, node: Hashable, rows: int, work: Callable[[int], T]) -> T:
    """Return what `work` returns for the rows of a step that are in memory at a time: `rows` at first, and half of them
    each time memory runs out.

    This process remembers what was enough for `node`. Raises OutOfMemory if a single row is too much, or if gradients
    of the model's rows do not add up.
    """
    rows, ran_out_with = _fitting.get(node, rows), None
    while True:
        try:
            found = within_memory(device, partial(work, rows))
        except OutOfMemory as error:
            if rows == 1:
                raise
            ran_out_with, rows = error, (rows + 1) // 2
            LOG.warning("memory ran out (%s); the node tries again with %d rows of a step at a time", error, rows)
        except Unsuited:
            if ran_out_with is None:
                raise
            raise ran_out_with from None
        else:
            if ran_out_with is not None:
                _fitting[node] = rows
            return found


@lru_cache  # every node of a simulation asks; a device's abilities do not change
def _trains(dtype: torch.dtype, device: str) -> bool:
    try:
        matrix = torch.ones(2, 2, dtype=dtype, device=device, requires_grad=True)
        torch.nn.functional.layer_norm(matrix @ matrix, (2,)).sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:  # a RuntimeError too, but the device has the dtype
        raise
    except (RuntimeError, TypeError):  # torch's errors for a device without a dtype or an operation in it
        return False
    return True

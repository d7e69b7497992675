"""Memory that a process holds though nothing needs it: pages of files it has read, and heaps after a large free.

Both are given back to the system where it can be asked (Linux with glibc); elsewhere they stay. No number changes.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

MAPS = Path("/proc/self/maps")
LARGE = 2**20  # bytes of a block that gets pages of its own
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in malloc.h
_C = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def drop_file_pages(tensor: torch.Tensor) -> None:
    """Give back the pages of a tensor that maps a file, once it has been read for the last time.

    The library maps weights one by one, but unmaps the file with the last of them: without this, all that has been
    quantised stays resident. Whoever reads the tensor again gets the same numbers from the file. A tensor in memory of
    its own is left alone, as it would lose them.
    """
    if _C is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    if not begin or not _maps_file(begin, begin + size):
        return
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and _C.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "madvise")


@contextmanager
def dropping_file_pages(module: nn.Module) -> Iterator[None]:
    """Within this, a linear layer gives its pages back as soon as it has run, so that a pass over a model that is
    about to be quantised never holds all of it."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear))
    hooks = [layer.register_forward_hook(lambda layer, *_: drop_file_pages(layer.weight)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def trim_heaps() -> None:
    """Give back the free parts of the heaps. A thread's heap keeps them: twice a large base after quantising it."""
    if _C is not None and hasattr(_C, "malloc_trim"):  # not with musl
        _C.malloc_trim(0)


def give_back_large_blocks() -> None:
    """From now on give memory back as soon as it is freed, if it is a large block.

    On a processor every step unpacks the layers of a quantised base, one after another, into blocks of many sizes.
    On the heap they leave holes that add up to more than the base saves; pages of their own cost a fifth of the time.
    """
    if _C is not None and hasattr(_C, "mallopt"):
        _C.mallopt(MMAP_THRESHOLD, LARGE)


def _maps_file(begin: int, end: int) -> bool:
    """Return whether these addresses lie in one mapping of a file."""
    for line in MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        low, high = (int(address, 16) for address in addresses.split("-"))
        if low <= begin < high:
            return inode != "0" and end <= high
    return False

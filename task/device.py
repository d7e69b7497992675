"""Devices by name, as in torch and run configs: cpu, cuda, cuda:1, xpu, mps."""

import math
import os
import re
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from task.container import cores_allowed

ACCELERATORS = ("cuda", "xpu", "mps")  # in the order that `auto` tries them
DEVICES = ("auto", "cpu", *ACCELERATORS)
# In RuntimeErrors of torch's CPU allocator; of mps and drivers; of cuBLAS; of C++; of torch when it maps a file. CUDA's
# allocator has its own class.
RAN_OUT = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "bad_alloc", "Cannot allocate memory")


class DeviceError(ValueError):
    """A device that this machine does not have."""

    public = "the node lacks the device that it was asked to use"


def found(wanted: str) -> str:
    """Return the device of a name; `auto` is the first available accelerator, else the CPU. Raises DeviceError."""
    if kind(wanted) == "cpu":
        return wanted
    there = [name for name in ACCELERATORS if _available(name)]
    if wanted == "auto":
        return (*there, "cpu")[0]
    if kind(wanted) not in there:
        raise DeviceError(f"device '{wanted}': torch finds none on this machine, but {', '.join([*there, 'cpu'])}")
    return wanted


def cores() -> int:
    """Return the number of CPU cores that this process may use, by its affinity and its container's quota."""
    bound = hasattr(os, "sched_getaffinity")
    there = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    return max(1, min(there, math.ceil(cores_allowed() or there)))


def multiplies_bfloat16(device: str) -> bool:
    """Return whether a device multiplies in bfloat16 itself, and does not emulate it."""
    import torch

    if kind(device) in ("cuda", "xpu"):
        return bool(torch.get_device_module(kind(device)).is_bf16_supported(including_emulation=False))
    return kind(device) == "cpu" and bool(torch.backends.mkldnn.enabled) and _has_matrix_units()


def random_state_kept(device: str) -> AbstractContextManager[None]:
    """Return a context that leaves torch's random states of the processor and of a device as they were."""
    import torch

    if kind(device) not in ("cuda", "xpu"):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=kind(device))  # of all devices torch would warn


@cache
def _has_matrix_units() -> bool:
    """Return whether the processor has units for products of matrices in bfloat16, as Linux lists them."""
    listed = Path("/proc/cpuinfo")
    return listed.exists() and bool(re.search(r"\b(amx_bf16|avx512_bf16|svebf16)\b", listed.read_text()))


def kind(device: str) -> str:
    """Return the kind of a device: `cuda` for `cuda:1`."""
    return device.split(":")[0]


def ran_out(error: Exception) -> bool:
    """Return whether an error of torch says that memory ran out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in RAN_OUT)


def _available(name: str) -> bool:
    import torch  # takes a second; configurations are read without it

    backend = getattr(torch, name, None) or getattr(torch.backends, name)
    return bool(backend.is_available())

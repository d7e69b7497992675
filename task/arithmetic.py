"""How a process computes: with how many threads, and with which kernels.

PyTorch, MKL and oneDNN take the best kernels that a processor has, and each kind rounds in its own way. With
`portable`, PyTorch and MKL take those that every x86-64 processor has, and oneDNN is off. PyTorch and MKL choose when a
process starts, by its environment. Kernels for AVX2 would be faster, but MKL has others for AMD than for Intel.
"""

import os
import platform
from collections.abc import Mapping

import torch

from task.config import TaskConfig
from task.device import kind
from task.schema import ConfigError

PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
X86 = ("x86_64", "AMD64")  # as Linux and Windows call it
ONEDNN = torch.backends.mkldnn.enabled  # as the process starts


def environment_of(config: TaskConfig) -> Mapping[str, str]:
    """Return the environment variables that the processes of a run must start with."""
    return PORTABLE if config.portable else {}


def set_arithmetic(config: TaskConfig, device: str) -> None:
    """Make this process compute as the settings say.

    Raises ConfigError if they ask for portable kernels, and the process has other ones or uses an accelerator.
    """
    torch.set_num_threads(config.threads)
    if config.portable and (problem := _not_portable(device)):
        raise ConfigError([f"portable = true: {problem}"])
    torch.backends.mkldnn.enabled = ONEDNN and not config.portable  # type: ignore[assignment]


def _not_portable(device: str) -> str:
    """Return why this process does not compute with portable kernels; empty if it does."""
    if kind(device) != "cpu":
        return f"it is for processors, and this process computes on {device}; set device = 'cpu'"
    if any(os.environ.get(name) != value for name, value in PORTABLE.items()):
        wanted = " and ".join(f"{name}={value}" for name, value in PORTABLE.items())
        return (
            f"a process chooses its kernels when it starts, and this one was started without {wanted} in its "
            "environment; `thistledown run` with its engine ray, and `thistledown up`, set them"
        )
    if platform.machine() not in X86:
        return f"it is for x86-64 processors, and this one is {platform.machine()}"
    if (found := torch.backends.cpu.get_cpu_capability()) != "DEFAULT":
        return f"PyTorch has chosen its kernels for {found} before the environment of this process was set"
    return ""

"""What a run was measured on: processor, accelerator and versions, in one line."""

import platform
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

from task.device import cores, found, kind

PACKAGES = ("torch", "flwr", "peft", "transformers", "ray")


@cache
def described() -> str:
    """Such as `2 cores (AMD EPYC), no accelerator; python 3.11.7, torch 2.13.0, ...`."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{cores()} cores ({_cpu()}), {_accelerator()}; python {platform.python_version()}, {packages}"


def _cpu() -> str:
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", listed.read_text()) if listed.exists() else []
    return names[0] if names else platform.processor()


def _accelerator() -> str:
    import torch  # seconds

    device = found("auto")
    return "no accelerator" if device == "cpu" else torch.get_device_module(kind(device)).get_device_name(0)

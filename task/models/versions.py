"""Which versions of what computes are installed here, read without importing any of it."""

import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "peft", "flwr")


def versions() -> dict[str, str]:
    """Versions by name, Python's first; an empty one for what is not installed."""
    return {"python": platform.python_version()} | {name: _installed(name) for name in PACKAGES}


@lru_cache  # of a simulation's nodes each says them, and metadata takes milliseconds to read
def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def written(found: Mapping[str, str]) -> str:
    """Versions for people, and for a profile."""
    return ", ".join(f"{name} {number or '(none)'}" for name, number in found.items())


def differing(said: str, ours: str) -> str:
    """Of versions as `written`, those that are not ours; empty where all are."""
    own = ours.split(", ")
    return ", ".join(part for part in said.split(", ") if part not in own)

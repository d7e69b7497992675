"""The installed versions of the packages that compute, read without importing them."""

import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "peft", "flwr")


def versions() -> dict[str, str]:
    """Return versions by name, Python first; an empty text for a package that is not installed."""
    return {"python": platform.python_version()} | {name: _installed(name) for name in PACKAGES}


@lru_cache  # every simulated node reports them, and reading metadata takes milliseconds
def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def written(found: Mapping[str, str]) -> str:
    """Return the versions as text, for people and for a profile."""
    return ", ".join(f"{name} {number or '(none)'}" for name, number in found.items())


def differing(said: str, ours: str) -> str:
    """Return the versions in `said`, as `written` gives them, that differ from `ours`; empty if none does."""
    own = ours.split(", ")
    return ", ".join(part for part in said.split(", ") if part not in own)

"""Partitioners by name. Each is one file of this folder, and the file's name is the value of data.partitioner."""

from task import extensions
from task.data.partitioners.base import Partitioner

PACKAGE = "task.data.partitioners"


def names() -> list[str]:
    """Return the names of all partitioners."""
    return extensions.names(PACKAGE)


def load(name: str) -> type[Partitioner]:
    """Return the class of a partitioner. Raises ConfigError if there is none of this name."""
    return extensions.load(PACKAGE, name, Partitioner)  # type: ignore[type-abstract]

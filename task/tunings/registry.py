"""Tunings by name. Each is one file of this folder, and the file's name is the value of the key `tuning`."""

from task import extensions
from task.tunings.base import Tuning

PACKAGE = "task.tunings"


def names() -> list[str]:
    """Return the names of all tunings."""
    return extensions.names(PACKAGE)


def load(name: str) -> type[Tuning]:
    """Return the class of a tuning. Raises ConfigError if there is none of this name."""
    return extensions.load(PACKAGE, name, Tuning)  # type: ignore[type-abstract]


def substitutes() -> list[str]:
    """Return the names of the tunings to suggest if another does not fit, in that order."""
    found = [(load(name).substitute, name) for name in names()]
    return [name for place, name in sorted(found) if place]

"""Task kinds by name: each is one file, and the file's name is its key."""

from collections.abc import Iterator
from functools import lru_cache

from task import extensions
from task.config import KINDS, TaskConfig
from task.kinds.base import Kind


def names() -> list[str]:
    """Return the names of all task kinds."""
    return extensions.names(KINDS)


def load(name: str) -> Kind:
    """Return the task kind of a name. Raises ConfigError where there is none."""
    return _made(extensions.load(KINDS, name, Kind))  # type: ignore[type-abstract]


def of(config: TaskConfig) -> Kind:
    """Return the task kind that a configuration names. Raises ConfigError where there is none."""
    return load(config.task.kind)


def every() -> Iterator[Kind]:
    """Return all task kinds, by name."""
    return map(load, names())


def by_peft(task_type: str) -> Kind:
    """Return the kind that peft calls so; where it has no such word, the one that peft has no word for."""
    found = {kind.peft_task_type: kind for kind in every()}
    return found.get(task_type, found[""])


@lru_cache
def _made(cls: type[Kind]) -> Kind:
    return cls()

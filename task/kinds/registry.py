"""Task kinds by name. Each is one file of this folder, and the file's name is the value of `task.kind`."""

from collections.abc import Iterator
from functools import lru_cache
from typing import cast

from task import extensions
from task.config import KINDS, TaskConfig
from task.kinds.base import Kind


def names() -> list[str]:
    """Return the names of all task kinds."""
    return extensions.names(KINDS)


def load(name: str) -> Kind:
    """Return the task kind of a name, with default options. Raises ConfigError if there is none of this name."""
    return _made(extensions.load(KINDS, name, Kind))  # type: ignore[type-abstract]


def of(config: TaskConfig) -> Kind:
    """Return the task kind of a configuration, with its options."""
    return cast(Kind, config.task.kind)


def every() -> Iterator[Kind]:
    """Yield all task kinds, in the order of their names."""
    return map(load, names())


def by_peft(task_type: str) -> Kind:
    """Return the kind of a peft task type; for an unknown type, the kind that has no peft task type."""
    found = {kind.peft_task_type: kind for kind in every()}
    return found.get(task_type, found[""])


@lru_cache
def _made(cls: type[Kind]) -> Kind:
    return cls()

"""Extensions: one file each, found by name.

A package is an axis (`strategies`, `strategies.wrappers`, `task.tunings`), a public module of it is an extension, and
the module's name in kebab-case is the extension's name. The module defines one subclass of the axis's base class; its
fields made by `task.schema.option` are the keys `<name>.<option>`.
"""

import os
import pkgutil
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from typing import TypeVar

from task.foreign_names import meant
from task.schema import ConfigError

NOT_EXTENSIONS = ("base", "registry")  # modules of a package that are not extensions
_asked: set[str] = set()  # packages whose names were asked for
T = TypeVar("T")


def names(package: str) -> list[str]:
    """Return the names of a package's extensions, sorted. Imports none of them."""
    _asked.add(package)
    return list(_names_in(*_places(package)))


def stamp() -> tuple[object, ...]:
    """Return what changes when an extension comes or goes in any loaded package that was asked for its names."""
    return tuple(_places(package) for package in sorted(_asked) if package in sys.modules)


def _places(package: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the folders of a package, and when they changed."""
    folders = tuple(import_module(package).__path__)
    return folders, tuple(os.stat(folder).st_mtime_ns for folder in folders)


@lru_cache(maxsize=64)
def _names_in(folders: tuple[str, ...], changed: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the extensions in folders that changed at these times: a message asks for them a hundred
    times, and like Python's own import, it reads a folder again when its time says that a file came or went."""
    found = [m.name for m in pkgutil.iter_modules(folders) if not m.ispkg]
    chosen = [name for name in found if name not in NOT_EXTENSIONS and not name.startswith("_")]
    return tuple(sorted(name.replace("_", "-") for name in chosen))


def name_of(extension: type) -> str:
    """Return the name of an extension: that of the file which defines its class."""
    return extension.__module__.rsplit(".", 1)[-1].replace("_", "-")


def load(package: str, name: str, base: type[T]) -> type[T]:
    """Return the class of an extension: the one subclass of `base` that its module defines.

    Raises ConfigError, with the nearest name, if there is no such extension, and TypeError for a module that defines
    none or several.
    """
    require(_noun(base), name, names(package))
    return _class_in(import_module(f"{package}.{name.replace('-', '_')}"), base)


def require(noun: str, name: str, there: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest name, unless `name` is there."""
    known = tuple(there)
    if name not in known:
        raise ConfigError([f"there is no {noun} '{name}'{meant(name, known)} (there are {', '.join(known)})"])


def _class_in(module: object, base: type[T]) -> type[T]:
    where = module.__name__  # type: ignore[attr-defined]
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == where]
    own = [c for c in classes if issubclass(c, base)]
    if len(own) != 1:
        raise TypeError(f"{where} must define exactly one {base.__name__}, it defines {len(own)}")
    return own[0]


def _noun(base: type) -> str:
    """Return a class's name in words: "server optimizer" for `ServerOptimizer`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", base.__name__).lower()

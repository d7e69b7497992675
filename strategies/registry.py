"""Strategies and wrappers by name: each is one file, and the file's name is its key."""

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar

from strategies.exchange.strategy import Strategy
from strategies.exchange.wrapper import Wrapper
from task.schema import ConfigError, Schema, build, key_of, read, schema, unknown

T = TypeVar("T")


def names() -> list[str]:
    """Keys of all strategies: every module of this package."""
    return _modules("strategies")


def wrapper_names() -> list[str]:
    """Keys of all wrappers."""
    return _modules("strategies.wrappers")


def load(name: str, wrappers: str | Iterable[str | Wrapper] = (), **options: object) -> Strategy:
    """Return the strategy `name` with `options` (run-config spelling or Python's: `mu=0.1`).

    `wrappers` are wrappers, or names of wrappers with their default options; a string is read as the run config's key
    is: "norm-bound,quantize". Raises ConfigError.
    """
    require("strategy", name, names())
    given = [part.strip() for part in wrappers.split(",") if part.strip()] if isinstance(wrappers, str) else wrappers
    chain = [load_wrapper(wrapper) if isinstance(wrapper, str) else wrapper for wrapper in given]
    return _with_wrappers(_with_options(name, strategy_class(name), options), chain)


def load_wrapper(name: str, **options: object) -> Wrapper:
    """The wrapper `name` with `options`. Raises ConfigError."""
    require("wrapper", name, wrapper_names())
    return _with_options(name, wrapper_class(name), options)


def strategy_class(name: str) -> type[Strategy]:
    """The class in the file of a strategy."""
    return _class_in(f"strategies.{name.replace('-', '_')}", Strategy)


def wrapper_class(name: str) -> type[Wrapper]:
    """The class in the file of a wrapper."""
    return _class_in(f"strategies.wrappers.{name.replace('-', '_')}", Wrapper)


def option_keys(strategy: str | None = None, wrappers: Iterable[str] | None = None) -> Schema:
    """Options as `<name>.<option>` keys: of one strategy and some wrappers, or of all of them."""
    chosen = names() if strategy is None else [strategy]
    around = wrapper_names() if wrappers is None else wrappers
    keys: Schema = {}
    for name in chosen:
        keys |= schema(strategy_class(name), f"{name}.")
    for name in around:
        keys |= schema(wrapper_class(name), f"{name}.")
    return keys


def from_values(values: Mapping[str, Any]) -> Strategy:
    """The strategy that `strategy`, `wrappers` and `<name>.<option>` keys describe; `values` as parsed."""
    chain = [build(wrapper_class(name), values, f"{name}.") for name in values["wrappers"]]
    return _with_wrappers(build(strategy_class(values["strategy"]), values, f"{values['strategy']}."), chain)


def _with_options(name: str, cls: type[T], options: Mapping[str, object]) -> T:
    values, problems = read({key_of(key): value for key, value in options.items()}, schema(cls))
    if problems:
        raise ConfigError([f"{name}: {problem}" for problem in problems])
    return build(cls, values)


def _with_wrappers(strategy: Strategy, wrappers: Iterable[Wrapper]) -> Strategy:
    chain = tuple(wrappers)
    return replace(strategy, wrappers=chain) if chain else strategy


def _modules(package: str) -> list[str]:
    found = (f"{package}.{m.name}" for m in pkgutil.iter_modules(import_module(package).__path__) if not m.ispkg)
    return sorted(name.rsplit(".", 1)[-1].replace("_", "-") for name in found if name != __name__)


def require(what: str, name: str, there: list[str]) -> None:
    """Raise ConfigError, with the nearest name, unless `name` is there."""
    if name not in there:
        problem = unknown(name, dict.fromkeys(there))  # type: ignore[arg-type]
        raise ConfigError([problem.replace("key", what, 1) + f" (there are {', '.join(there)})"])


def _class_in(module: str, base: type[T]) -> type[T]:
    """The one subclass of `base` that the module defines."""
    loaded = import_module(module)
    classes = [c for c in vars(loaded).values() if isinstance(c, type) and c.__module__ == module]
    own = [c for c in classes if issubclass(c, base)]
    if len(own) != 1:
        raise TypeError(f"{module} must define exactly one {base.__name__}, it defines {len(own)}")
    return own[0]

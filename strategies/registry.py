"""Strategies and wrappers by name: each is one file, and the file's name is its key."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from strategies.exchange.strategy import Strategy
from strategies.exchange.wrapper import Wrapper
from task import extensions
from task.schema import ConfigError, Schema, build, key_of, read, schema

STRATEGIES = "strategies"
WRAPPERS = "strategies.wrappers"
T = TypeVar("T")


def names() -> list[str]:
    """Return the names of all strategies."""
    return extensions.names(STRATEGIES)


def wrapper_names() -> list[str]:
    """Return the names of all wrappers."""
    return extensions.names(WRAPPERS)


def load(name: str, wrappers: str | Iterable[str | Wrapper] = (), **options: object) -> Strategy:
    """Return the strategy `name` with `options` (run-config spelling or Python's: `mu=0.1`).

    `wrappers` are wrappers, or names of wrappers with their default options; a string is read as the run config's key
    is: "norm-bound,quantize". Raises ConfigError.
    """
    given = [part.strip() for part in wrappers.split(",") if part.strip()] if isinstance(wrappers, str) else wrappers
    chain = [load_wrapper(wrapper) if isinstance(wrapper, str) else wrapper for wrapper in given]
    return _with_wrappers(_with_options(name, strategy_class(name), options), chain)


def load_wrapper(name: str, **options: object) -> Wrapper:
    """The wrapper `name` with `options`. Raises ConfigError."""
    return _with_options(name, wrapper_class(name), options)


def strategy_class(name: str) -> type[Strategy]:
    """Return the class in the file of a strategy. Raises ConfigError where there is none."""
    return extensions.load(STRATEGIES, name, Strategy)


def wrapper_class(name: str) -> type[Wrapper]:
    """Return the class in the file of a wrapper. Raises ConfigError where there is none."""
    return extensions.load(WRAPPERS, name, Wrapper)


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

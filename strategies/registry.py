"""Strategies, wrappers and server optimizers by name: each is one file, and the file's name is its key."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from strategies.exchange.server_optimizer import ServerOptimizer, prefix_of
from strategies.exchange.strategy import Strategy
from strategies.exchange.wrapper import Wrapper
from task import extensions
from task.schema import ConfigError, Schema, build, key_of, read, schema

STRATEGIES = "strategies"
WRAPPERS = "strategies.wrappers"
OPTIMIZERS = "strategies.optimizers"
KEY = "server-optimizer"  # of the run config
PLAIN = "sgd"  # the default server optimizer
T = TypeVar("T")


def names() -> list[str]:
    """Return the names of all strategies."""
    return extensions.names(STRATEGIES)


def wrapper_names() -> list[str]:
    """Return the names of all wrappers."""
    return extensions.names(WRAPPERS)


def optimizer_names() -> list[str]:
    """Return the names of all server optimizers."""
    return extensions.names(OPTIMIZERS)


def load(
    name: str,
    wrappers: str | Iterable[str | Wrapper] = (),
    server_optimizer: str | ServerOptimizer = PLAIN,
    **options: object,
) -> Strategy:
    """Return the strategy `name` with `options` (run-config spelling or Python's: `mu=0.1`).

    `wrappers` are wrappers, or names of wrappers with their default options; a string is parsed like the run config's
    key: "norm-bound,quantize". `server_optimizer` is an optimizer or its name. Raises ConfigError.
    """
    given = [part.strip() for part in wrappers.split(",") if part.strip()] if isinstance(wrappers, str) else wrappers
    chain = [load_wrapper(wrapper) if isinstance(wrapper, str) else wrapper for wrapper in given]
    chosen = load_optimizer(server_optimizer) if isinstance(server_optimizer, str) else server_optimizer
    return _composed(_with_options(name, strategy_class(name), options), chain, chosen)


def load_wrapper(name: str, **options: object) -> Wrapper:
    """Return the wrapper `name` with `options`. Raises ConfigError."""
    return _with_options(name, wrapper_class(name), options)


def load_optimizer(name: str, **options: object) -> ServerOptimizer:
    """Return the server optimizer `name` with `options`. Raises ConfigError."""
    return _with_options(name, optimizer_class(name), options)


def strategy_class(name: str) -> type[Strategy]:
    """Return the class in a strategy's file. Raises ConfigError if there is none."""
    return extensions.load(STRATEGIES, name, Strategy)


def wrapper_class(name: str) -> type[Wrapper]:
    """Return the class in a wrapper's file. Raises ConfigError if there is none."""
    return extensions.load(WRAPPERS, name, Wrapper)


def optimizer_class(name: str) -> type[ServerOptimizer]:
    """Return the class in a server optimizer's file. Raises ConfigError if there is none."""
    return extensions.load(OPTIMIZERS, name, ServerOptimizer)


def option_keys(
    strategy: str | None = None, wrappers: Iterable[str] | None = None, optimizers: Iterable[str] | None = None
) -> Schema:
    """Return options as `<name>.<option>` keys: of one strategy, some wrappers and server optimizers, or of all of
    them."""
    chosen = names() if strategy is None else [strategy]
    around = wrapper_names() if wrappers is None else wrappers
    stepping = optimizer_names() if optimizers is None else optimizers
    keys: Schema = {}
    for name in chosen:
        keys |= schema(strategy_class(name), f"{name}.")
    for name in around:
        keys |= schema(wrapper_class(name), f"{name}.")
    for name in stepping:
        keys |= schema(optimizer_class(name), prefix_of(name))
    return keys


def from_values(values: Mapping[str, Any]) -> Strategy:
    """Return the strategy that `strategy`, `wrappers`, `server-optimizer` and `<name>.<option>` keys describe; `values`
    as parsed. A node's strategy has no server optimizer."""
    chain = [build(wrapper_class(name), values, f"{name}.") for name in values["wrappers"]]
    plain, name = build(strategy_class(values["strategy"]), values, f"{values['strategy']}."), values.get(KEY)
    return _composed(plain, chain, build(optimizer_class(name), values, prefix_of(name)) if name else None)


def _with_options(name: str, cls: type[T], options: Mapping[str, object]) -> T:
    values, problems = read({key_of(key): value for key, value in options.items()}, schema(cls))
    if problems:
        raise ConfigError([f"{name}: {problem}" for problem in problems])
    return build(cls, values)


def _composed(strategy: Strategy, wrappers: Iterable[Wrapper], optimizer: ServerOptimizer | None) -> Strategy:
    """Return the strategy with its wrappers, and with its server optimizer if that has any effect."""
    stepping = None if optimizer is None or optimizer.identity else optimizer
    return replace(strategy, wrappers=tuple(wrappers), server_optimizer=stepping)

"""Run-config keys in words: their defaults, and what they accept."""

import typing
from collections.abc import Callable

import strategies
from server_app.callbacks import tracker
from task.schema import Option

EXTENSIONS: dict[str, Callable[[], list[str]]] = {  # keys that name files, and what finds these
    "strategy": strategies.names,
    "wrappers": strategies.wrapper_names,
    "trackers": tracker.names,
    "server-optimizer": strategies.optimizer_names,
}
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def default_of(option: Option) -> str:
    """Return the default as TOML writes it."""
    value = option.flat(option.default)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def accepted(key: str, option: Option, quote: str = "'") -> str:
    """Return the type and the range of an option in words, with names between `quote`."""
    if names := list(option.choices) or EXTENSIONS.get(key, list)():
        several = "several of " if typing.get_origin(option.type) is tuple else ""
        return several + ", ".join(f"{quote}{name}{quote}" for name in names)
    is_list = typing.get_origin(option.type) is tuple
    word = WORDS[typing.get_args(option.type)[0] if is_list else option.type]
    if is_list:
        word = f"{word} list, separated by {quote}{option.separator}{quote}"
    if option.empty:
        word += f", or {quote}{option.empty}{quote}"
    return word + _range(option)


def _range(option: Option) -> str:
    low, high = option.low, option.high
    if low is not None and high is not None:
        return f", {low:,.12g} to {high:,.12g}"
    if low is not None:
        return f", at least {low:,.12g}"
    return "" if high is None else f", at most {high:,.12g}"

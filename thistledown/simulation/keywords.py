"""The arguments of `simulate` as run-config keys."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from strategies.exchange.strategy import Strategy
from strategies.exchange.wrapper import Wrapper
from task.schema import ConfigError, flatten, key_of
from thistledown.settings import Values, joined


def run_config(
    strategy: str | Strategy, wrappers: str | Iterable[str | Wrapper], *settings: Mapping[str, object]
) -> Values:
    """Return the arguments as run-config keys; each mapping of `settings` contributes keys.

    A nested mapping is a group of keys (`lora={"ranks": "2,4"}`), a list is for a key that takes a list, and an
    underscore stands for a dash. Raises ConfigError for a key that is given twice.
    """
    values: Values = {}
    problems: list[str] = []
    for part in (_of_strategy(strategy), _of_wrappers(wrappers), *map(flat, settings)):
        problems += [f"{key} is given twice" for key in values.keys() & part.keys() if values[key] != part[key]]
        values |= part
    problems += [problem for key in values if (problem := joined(values, key))]
    if problems:
        raise ConfigError(problems)
    return values


def flat(settings: Mapping[str, object], prefix: str = "") -> Values:
    """Return nested settings as dotted keys."""
    values: Values = {}
    for name, value in settings.items():
        key = prefix + key_of(name)
        if isinstance(value, Mapping):
            values |= flat(value, f"{key}.")
        else:
            values[key] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return values


def _of_strategy(strategy: str | Strategy) -> Values:
    return {"strategy": strategy} if isinstance(strategy, str) else dict(strategy.to_flat())


def _of_wrappers(wrappers: str | Iterable[str | Wrapper]) -> Values:
    """Return the names of the wrappers, with the options of those given as objects."""
    chain = wrappers.split(",") if isinstance(wrappers, str) else list(wrappers)
    names = [one.strip() if isinstance(one, str) else one.name for one in chain]
    values: Values = {"wrappers": ",".join(name for name in names if name)} if any(names) else {}
    for one in chain:
        if isinstance(one, Wrapper):
            values |= flatten(one, f"{one.name}.", changed_only=True)
    return values

"""Options as frozen dataclasses, read from the flat dictionary that Flower calls a run config.

A field made with `option` has a default and bounds. `schema` lists the options of a dataclass by run-config key
(kebab-case, dots for groups), `read` checks a flat dictionary against such a list and reports *all* problems at once,
and `build` makes the dataclass. Schemas of several dataclasses combine with `|`; in this way every strategy adds its
own options.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from task.foreign_names import FOREIGN as FOREIGN
from task.foreign_names import meant

Scalar = bool | int | float | str
Flat = dict[str, Scalar]
Schema = dict[str, "Option"]
T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot run. The message lists every problem, and may be sent to the author of the
    configuration: it quotes only their keys and values."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  - ".join([f"{count} in the configuration:", *problems]))
        self.public = str(self)


@dataclass(frozen=True)
class Option:
    """One run-config key: its type, its default, the values it accepts and its meaning (`doc`). `empty` is the word for
    a list without items."""

    type: Any
    default: Any
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    separator: str = ","
    empty: str = ""
    doc: str = ""

    def parse(self, value: object) -> Any:
        """Return the value in this option's type. Raises ValueError, which says what is accepted."""
        value = self._typed(value)
        if self.choices and value not in self.choices:
            hint = meant(str(value), self.choices)
            raise ValueError(f"must be one of {', '.join(self.choices)}, not '{value}'{hint}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                self._bounded(number)
        return value

    def flat(self, value: Any) -> Scalar:
        """Return the value as Flower can send it: tuples become text."""
        if value == () and self.empty:
            return self.empty
        if isinstance(value, tuple):
            text = self.separator.join(str(item) for item in value)
            if self._items(text) != value:
                raise ValueError(f"cannot be written as text with items separated by '{self.separator}': {value!r}")
            return text
        return typing.cast(Scalar, value)

    def _typed(self, value: object) -> Any:
        if typing.get_origin(self.type) is tuple:
            return self._items(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.type is float and is_number:
            return float(typing.cast(float, value))
        if type(value) is not self.type:
            raise ValueError(f"must be {_WORDS[self.type]}, not {_shown(value)}")
        return value

    def _items(self, value: object) -> tuple[Any, ...]:
        kind = typing.get_args(self.type)[0]
        if isinstance(value, tuple) and all(type(item) is kind for item in value):
            return value
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"must be text with items separated by '{self.separator}', not {value!r}")
        items = [item.strip() for item in str(value).split(self.separator) if item.strip()]
        if self.empty and items == [self.empty]:
            return ()
        try:
            found = tuple(kind(item) for item in items)
        except ValueError:
            found = None
        if found is None or (self.empty and not found):
            form = f"whole numbers separated by '{self.separator}', such as '2,4,8'"
            word = f", or '{self.empty}'" if self.empty else ""
            raise ValueError(f"must be {form}{word}, not '{value}'")
        return found

    def _bounded(self, number: float) -> None:
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError(f"must be a finite number, not {number}")
        if self.low is not None and number < self.low:
            raise ValueError(f"must be at least {self.low:g}, not {number:g}")
        if self.high is not None and number > self.high:
            raise ValueError(f"must be at most {self.high:g}, not {number:g}")


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _shown(value: object) -> str:
    """Return a value of the wrong type, in TOML spelling."""
    return (
        str(value).lower() if isinstance(value, bool) else f"text '{value}'" if isinstance(value, str) else str(value)
    )


def option(
    default: Any,
    *,
    choices: tuple[str, ...] | Callable[[], Iterable[str]] = (),
    low: float | None = None,
    high: float | None = None,
    separator: str = ",",
    empty: str = "",
    doc: str = "",
) -> Any:
    """Return a dataclass field that is a run-config key. `doc` is its meaning with unit and range: the comment of the
    key in pyproject.toml, and its line in the documentation."""
    limits = {"choices": choices, "low": low, "high": high, "separator": separator, "empty": empty, "doc": doc}
    return field(default=default, metadata={"option": limits})


def group(cls: type[T]) -> Any:
    """Return a dataclass field that is a group of keys (a table in TOML)."""
    return field(default_factory=cls, metadata={"group": cls})


class Axis(Protocol):
    """Extensions of one kind, one file each, found by name."""

    def names(self) -> list[str]:
        """Return the names of all extensions."""

    def load(self, name: str) -> type:
        """Return the dataclass of an extension."""


def chosen(axis: Axis, default: str, *, doc: str = "") -> Any:
    """Return a dataclass field that is an extension of `axis`, by default the one named `default`.

    The value of its key is a name. The options of all extensions are keys too, in the table that their class names by
    `table`, else in a table of the extension's name.
    """
    return field(default_factory=lambda: axis.load(default)(), metadata={"axis": axis, "default": default, "doc": doc})


def key_of(name: str) -> str:
    """Return the run-config key of a Python name."""
    return name.replace("_", "-")


def schema(cls: type, prefix: str = "") -> Schema:
    """Return every option of a dataclass, nested groups and extensions included, by run-config key."""
    types = _types(cls)
    keys: Schema = {}
    for part in dataclasses.fields(cls):
        key = prefix + key_of(part.name)
        if "group" in part.metadata:
            keys |= schema(part.metadata["group"], key + ".")
        elif "option" in part.metadata:
            keys[key] = Option(types[part.name], part.default, **_limits(part.metadata["option"]))
        elif "axis" in part.metadata:
            axis = part.metadata["axis"]
            names = tuple(axis.names())
            keys[key] = Option(str, part.metadata["default"], choices=names, doc=part.metadata["doc"])
            for name in names:
                keys |= schema(axis.load(name), _table(axis, name))
    return keys


@lru_cache(maxsize=256)
def _types(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields: the same as long as there is the class, and slow to read."""
    return typing.get_type_hints(cls)


def _table(axis: Axis, name: str) -> str:
    """Return the prefix of the keys of an extension's options."""
    return f"{getattr(axis.load(name), 'table', '') or name}."


def _limits(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values an option accepts, with its current choices: extensions may be added."""
    choices = said["choices"]
    return {**said, "choices": tuple(choices()) if callable(choices) else choices}


def read(flat: Mapping[str, object], keys: Schema) -> tuple[dict[str, Any], list[str]]:
    """Return the parsed values (defaults for absent keys) and every problem."""
    values, problems = {key: item.default for key, item in keys.items()}, []
    for key, value in flat.items():
        if key not in keys:
            problems.append(unknown(key, keys))
            continue
        try:
            values[key] = keys[key].parse(value)
        except ValueError as error:
            problems.append(f"{key} {error}")
    return values, problems


def unknown(key: str, keys: Mapping[str, Option]) -> str:
    """Return the problem of a key that does not exist."""
    return f"there is no key '{key}'{meant(key, tuple(keys))}"


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return the dataclass whose options are `values`, as `read` returns them."""
    arguments = {}
    for part in dataclasses.fields(cls):  # type: ignore[arg-type]
        key = prefix + key_of(part.name)
        if "group" in part.metadata:
            arguments[part.name] = build(part.metadata["group"], values, key + ".")
        elif "option" in part.metadata:
            arguments[part.name] = values[key]
        elif "axis" in part.metadata:
            axis, name = part.metadata["axis"], values[key]
            arguments[part.name] = build(axis.load(name), values, _table(axis, name))
    return cls(**arguments)


def flatten(config: Any, prefix: str = "", *, changed_only: bool = False) -> Flat:
    """Return the flat dictionary of a dataclass, with the options of the chosen extensions only. With `changed_only`,
    return only values that differ from the defaults."""
    keys = schema(type(config), prefix)
    values = _values(config, prefix)
    return {key: keys[key].flat(value) for key, value in values if not changed_only or value != keys[key].default}


def _values(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the key and value of every option, in the order of the fields."""
    for part in dataclasses.fields(config):
        key, value = prefix + key_of(part.name), getattr(config, part.name)
        if "group" in part.metadata:
            yield from _values(value, key + ".")
        elif "option" in part.metadata:
            yield key, value
        elif "axis" in part.metadata:
            yield key, value.name
            yield from _values(value, _table(part.metadata["axis"], value.name))

"""The train, validation and test rows, their labels and their sites. No model is needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from task.config import TaskConfig
from task.data.index import DataIndex, Part
from task.data.labels import Labels
from task.data.raw import DataError, Raw
from task.data.request import Reading
from task.data.sites import sites_of
from task.data.sources.base import Source, read_split
from task.data.splits import VALIDATION, called
from task.kinds import registry as kinds
from task.kinds.base import Kind
from task.seeds import derive

PARTS = ("train", "validation", "test")
SHOWN = 5  # rows named in a notice
Names = tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A split: its used rows, the label names, whether each row has its own label, the names of sites, how labels are
    written, and notices."""

    part: Part
    labels: Names
    by_row: bool
    sites: Names
    by_position: bool | None
    notices: tuple[str, ...]


def parts_of(config: TaskConfig, source: Source) -> DataIndex:
    """Return the three parts, from their own splits or cut from train."""
    data = config.data
    splits, said = _splits(config, source)
    fractions = {"test": data.test_fraction, "validation": data.validation_fraction}
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    train = found_in(config, source, splits["train"], data.labels)
    every, names, notices = train.part, train.labels, [*said, *train.notices]
    parts, rest = {}, _random("cut").permutation(len(every))
    for name in ("test", "validation"):
        if split := splits[name]:
            other = found_in(config, source, split, names, by_position=train.by_position)
            parts[name] = other.part
            notices += other.notices
        else:
            cut, rest = np.split(rest, [share(len(every), fractions[name])])
            parts[name] = every.take(np.sort(cut))
    parts["train"] = every.take(np.sort(rest))
    if not len(parts["train"]):
        raise DataError(f"{source.name}: {len(every)} rows in '{splits['train']}' leave none to train on")
    limited = {name: _limited(parts[name], limits[name], name) for name in PARTS}
    return DataIndex("", names, limited, train.sites, tuple(dict.fromkeys(notices)), train.by_row)


def _splits(config: TaskConfig, source: Source) -> tuple[dict[str, str], list[str]]:
    """Return the split of every part (empty if it is cut from train), and notices on splits found under another name
    than configured."""
    data, have = config.data, source.splits()
    asked = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    found = {part: split and (called(split, have, source.name) or split) for part, split in asked.items()}
    found["validation"] = found["validation"] or called(VALIDATION, have, source.name)
    if found["train"] in (found["validation"], found["test"]):
        raise DataError(
            f"split '{data.train_split}' of {source.name} cannot be trained on and be validation or test too"
        )
    usual = {**asked, "validation": data.validation_split or VALIDATION}
    other = [part for part, split in found.items() if split and split != usual[part]]
    return found, [f"{source.name}: split '{found[part]}' is the {part} part" for part in other]


def found_in(
    config: TaskConfig,
    source: Source,
    split: str,
    labels: Sequence[str],
    most_labels: int = 0,
    by_position: bool | None = None,
) -> Found:
    """Return a split with its labels, which must be among the given ones, if any. Raises DataError."""
    data, train = config.data, split == (called(config.data.train_split, source.splits(), source.name) or split)
    raw = read_split(source, split, reading_of(config, ids=train))
    rows, said = _filled(config, raw)
    kind, found, said = kinds.of(config), Labels((), None, by_position), list(said)
    if kind.drawn_head or (has_labels(config) and train):
        _require_labels(config, kind, raw)
        found = kind.labels_of(raw, data.label_column, labels, rows, by_position, most_labels)
        said += found.notices
    codes = np.zeros(len(rows), np.int64) if found.codes is None else found.codes
    ids, sites = sites_of(raw, data.id_column, rows) if _has_ids(config) and train else (None, ())
    notices = (*raw.notices, *said)
    return Found(Part(split, rows, codes, ids), found.names, found.codes is not None, sites, found.by_position, notices)


def _filled(config: TaskConfig, raw: Raw) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows that have an input, and notices on the others. Raises DataError for a value that is no text, and
    for an empty one unless empty rows are left out."""
    kind, columns = kinds.of(config), input_columns(config)
    article, what = kind.input_noun.split(" ", 1)
    empty = np.zeros(len(raw), bool)
    for column in columns:
        without = kind.missing(raw, column)
        if without.any() and not config.data.skip_empty:
            raise raw.fault(int(without.argmax()), column, f"the {what} is empty")
        empty |= without
    if not empty.any():
        return np.arange(len(raw)), []
    bare, named = np.flatnonzero(empty), " or ".join(map(repr, columns))
    if len(bare) == len(raw):
        raise DataError(f"{raw.place}: no row has {article} {what} in {named}", f"no row has {article} {what}")
    shown = ", ".join(map(str, bare[:SHOWN])) + (" and more" if len(bare) > SHOWN else "")
    said = f"{raw.place}: {len(bare):,} of {len(raw):,} rows have no {what} in {named}"
    return np.flatnonzero(~empty), [f"{said} and are left out (data.skip-empty): rows {shown}"]


def _require_labels(config: TaskConfig, kind: Kind, raw: Raw) -> None:
    column, split = config.data.label_column, config.data.partitioner.name
    if not kind.drawn_head and not raw.has(column):
        raise DataError(
            f"{raw.place} has no column '{column}', and data.partitioner = '{split}' goes by labels: "
            "use 'iid', or 'natural' with data.id-column, or name a column of categories by data.label-column"
        )
    raw.require(column, "data.label-column")


# ------------------------------------------------------------------------------------------------ columns
def input_columns(config: TaskConfig) -> list[str]:
    """Return the input columns that the data must have."""
    return kinds.of(config).required(config.data)


def columns_of(config: TaskConfig) -> tuple[list[str], str, str]:
    """Return the columns to read from a node's own file: of inputs, labels and ids; empty if not used."""
    data, kind = config.data, kinds.of(config)
    return list(kind.columns(data)), data.label_column if kind.drawn_head else "", data.id_column


def reading_of(config: TaskConfig, *, ids: bool = True) -> Reading:
    """Return what to read from the data: the columns of inputs, of labels and, if `ids`, of ids."""
    data, kind = config.data, kinds.of(config)
    keys = kind.columns(data)
    required = {column: keys[column] for column in kind.required(data)}
    if kind.drawn_head:
        required[data.label_column] = "data.label-column"
    if ids and _has_ids(config):
        required[data.id_column] = "data.id-column"
    optional = [*keys, *([data.label_column] if has_labels(config) else [])]
    columns = tuple(dict.fromkeys([*required, *(column for column in optional if column)]))
    return Reading(columns, required, data.delimiter, data.encoding)


def has_labels(config: TaskConfig) -> bool:
    """Return whether rows have labels, or categories for the division of rows."""
    return kinds.of(config).drawn_head or config.data.partitioner.needs_labels


def _has_ids(config: TaskConfig) -> bool:
    """Return whether rows belong to sites. A node's own rows are not divided."""
    return bool(config.data.id_column) and not config.data.partitioner.own_rows


# ------------------------------------------------------------------------------------------------ sizes
def _limited(part: Part, limit: int, name: str) -> Part:
    """Return at most `limit` rows (0: all), drawn at random."""
    if not 0 < limit < len(part):
        return part
    return part.take(np.sort(_random(name).choice(len(part), limit, replace=False)))


def share(count: int, fraction: float) -> int:
    """Return how many of `count` rows a fraction is: at least one if it is above 0, and never all."""
    return min(max(round(count * fraction), 1), count - 1) if fraction and count > 1 else 0


def _random(what: str) -> np.random.Generator:
    return np.random.default_rng(derive("data", what))

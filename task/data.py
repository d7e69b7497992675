"""From a configured source to prepared rows. Each step is made once and kept in the store.

`outline` needs no model: which rows are train, validation and test, and what their labels are. `prepare`
adds the model's inputs, encoded for the base in a folder. The second time, either is a few small files and
memory maps.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.completions import Columns, CompletionEncoder
from task.config import BY_LABEL, TaskConfig
from task.images import ImageEncoder
from task.labels import category_names, check_few, label_codes, label_names
from task.outline import Outline, Part, read_outline, write_outline
from task.raw import DataError, Raw
from task.retention import trim
from task.rows import Rows
from task.seeds import derive
from task.sources import Digits, Source, open_source, read_split
from task.store import Store, recipe_hash
from task.texts import TextEncoder

__all__ = [
    "DataError",
    "Outline",
    "Part",
    "Parts",
    "Rows",
    "holdout",
    "outline",
    "outline_file",
    "prepare",
    "prepare_file",
]

PARTS = ("train", "validation", "test")
NATIVE_VALIDATION = "validation"
NOTICES = "notices.json"
_EDITION = 2  # of what is stored; another number makes everything anew


@dataclass(frozen=True)
class Parts:
    """The prepared rows of a task. `notices` are sentences on what was detected, left out or cut."""

    train: Rows
    validation: Rows
    test: Rows
    labels: tuple[str, ...]
    notices: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------ outline
def outline(config: TaskConfig, store: Store) -> Outline:
    """The parts of `data.name` and the label names. Random choices are the same for every seed of a run.

    Raises DataError for a source, split or column that does not exist, and for labels that cannot be read.
    """
    return _task_outline(config, store, _source(config))


def _task_outline(config: TaskConfig, store: Store, source: Source) -> Outline:
    data = config.data
    splits = [data.train_split, data.validation_split, data.test_split]
    sizes = [
        data.validation_fraction,
        data.test_fraction,
        data.train_rows,
        data.validation_rows,
        data.test_rows,
    ]
    return _outline(store, source, config, [splits, sizes], lambda: _parts(config, source))


def outline_file(
    config: TaskConfig, store: Store, path: str | Path, labels: Sequence[str] = (), most_labels: int = 0
) -> Outline:
    """The one part `train` of a node's own file or folder; its labels, if a classifier is tuned, must be among `labels`
    (empty: any), and no more than `most_labels` (0: any number), as `labels.check_few` says.

    Raises DataError as `outline` does.
    """
    return _own_outline(config, store, _own(config, path), labels, most_labels)


def _own_outline(
    config: TaskConfig, store: Store, source: Source, labels: Sequence[str], most_labels: int = 0
) -> Outline:
    config = replace(config, data=replace(config.data, partitioner="none"))  # nobody divides a node's own rows

    def parts() -> Outline:
        splits = list(source.splits())
        split = splits[0] if len(splits) == 1 else config.data.train_split
        part, names = _part(config, source, split, labels, most_labels)
        return Outline("", names, {"train": part})

    choices = [config.data.train_split, list(labels), *([most_labels] if most_labels else [])]
    return _outline(store, source, config, choices, parts)


def _source(config: TaskConfig) -> Source:
    return open_source(config.data.name, config.data.subset, config.data.train_split)


def _own(config: TaskConfig, path: str | Path) -> Source:
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise DataError(f"there is no file or folder {place}", "the node's own data is not where its data-path says")
    return open_source(str(place), train_split=config.data.train_split)


def _outline(
    store: Store,
    source: Source,
    config: TaskConfig,
    choices: object,
    parts: Callable[[], Outline],
) -> Outline:
    label_column = config.data.label_column if _has_labels(config) else ""
    columns = [*_input_columns(config), label_column, config.data.id_column, config.data.labels]
    key = recipe_hash([_EDITION, config.task.kind, source.stamp(), columns, choices])
    with store.made("outlines", key, source.name) as folder:
        if folder is not None:
            write_outline(folder, parts())
    return read_outline(store.path("outlines", key), key)


def _parts(config: TaskConfig, source: Source) -> Outline:
    """Label names, and the three parts: from their own splits, or cut from train."""
    data = config.data
    native = NATIVE_VALIDATION if NATIVE_VALIDATION in source.splits() else ""
    splits = {"test": data.test_split, "validation": data.validation_split or native}
    fractions = {"test": data.test_fraction, "validation": data.validation_fraction}
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    if data.train_split in splits.values():
        raise DataError(
            f"split '{data.train_split}' of {source.name} cannot be trained on and be validation or test too"
        )
    train, names = _part(config, source, data.train_split, data.labels)
    parts, rest = {}, _random("cut").permutation(len(train))
    for name, split in splits.items():
        if split:
            parts[name], _ = _part(config, source, split, names)
        else:
            cut, rest = np.split(rest, [_share(len(train), fractions[name])])
            parts[name] = train.take(np.sort(cut))
    parts["train"] = train.take(np.sort(rest))
    if not len(parts["train"]):
        raise DataError(f"{source.name}: {len(train)} rows in '{data.train_split}' leave none to train on")
    return Outline("", names, {name: _limited(parts[name], limits[name], name) for name in PARTS})


def _part(
    config: TaskConfig, source: Source, split: str, labels: Sequence[str], most_labels: int = 0
) -> tuple[Part, tuple[str, ...]]:
    """All rows of a split, and the label names (those given, if any)."""
    data, raw = config.data, read_split(source, split)
    for column in _input_columns(config):
        raw.require(column)
    if most_labels and not config.causal:
        check_few(raw, data.label_column, most_labels)
    names, codes = _labels(config, raw, split, labels)
    ids = _ids(raw, data.id_column) if data.id_column and split == data.train_split else None
    return Part(split, np.arange(len(raw)), codes, ids), names


def _labels(
    config: TaskConfig, raw: Raw, split: str, given: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Label names and the label of every row. A causal language model has none, all rows are alike to it; but the split
    that is divided by label has categories.
    """
    column = config.data.label_column
    if config.causal and not (_has_labels(config) and split == config.data.train_split):
        return (), np.zeros(len(raw), np.int64)
    if config.causal and not raw.has(column):
        raise DataError(
            f"{raw.place} has no column '{column}', and data.partitioner = '{config.data.partitioner}' goes by labels: "
            "use 'iid', or 'natural' with data.id-column, or name a column of categories by data.label-column"
        )
    raw.require(column)
    names = (category_names if config.causal else label_names)(raw, column, given)
    return names, label_codes(raw, column, names)


def _has_labels(config: TaskConfig) -> bool:
    return not config.causal or config.data.partitioner in BY_LABEL


def _ids(raw: Raw, column: str) -> NDArray[np.int64]:
    """The natural client of every row, numbered from 0 in sorted order."""
    values = list(raw.values(column))
    for row, value in enumerate(values):
        if value is None or value != value or not isinstance(value, str | int | float):
            raise DataError.at(raw.place, row, column, "no id", f", but {value!r:.60}")
    return np.unique(np.array(values), return_inverse=True)[1].astype(np.int64)


def _limited(part: Part, limit: int, name: str) -> Part:
    """At most `limit` rows (0: all), drawn at random."""
    if not 0 < limit < len(part):
        return part
    return part.take(np.sort(_random(name).choice(len(part), limit, replace=False)))


def _share(count: int, fraction: float) -> int:
    """How many of `count` rows a fraction is: at least one where it is above 0, and never all."""
    return min(max(round(count * fraction), 1), count - 1) if fraction and count > 1 else 0


def _random(what: str) -> np.random.Generator:
    return np.random.default_rng(derive("data", what))


def columns_of(config: TaskConfig) -> tuple[list[str], str, str]:
    """The columns that a node's own file is read for: of inputs, of labels and of ids; empty where there is none."""
    data = config.data
    inputs = _input_columns(config)
    if config.causal and data.instruction_column and data.input_column:
        inputs = [data.instruction_column, data.input_column, data.output_column]  # read where there is one
    return inputs, "" if config.causal else data.label_column, data.id_column


def _input_columns(config: TaskConfig) -> list[str]:
    """The columns that a model's inputs are made of, as far as data must have them."""
    if config.causal:
        return Columns.of(config.data).required
    return [config.data.text_column if config.task.kind == "text-classification" else config.data.image_column]


# ------------------------------------------------------------------------------------------------ inputs
def prepare(config: TaskConfig, base: Path, store: Store) -> Parts:
    """Train, validation and test rows, ready for the model whose files are in folder `base`.

    Raises DataError where `outline` does, for inputs that cannot be encoded, and where the base
    does not say how.
    """
    source = _source(config)
    plan = _task_outline(config, store, source)
    rows, notices = _prepared(config, base, store, source, plan)
    return Parts(rows["train"], rows["validation"], rows["test"], plan.labels, plan.notices + notices)


def prepare_file(
    config: TaskConfig, base: Path, store: Store, path: str | Path, labels: Sequence[str], most_labels: int = 0
) -> Rows:
    """The rows of a node's own file or folder. Raises DataError as `outline_file` and `prepare` do."""
    source = _own(config, path)
    plan = _own_outline(config, store, source, labels, most_labels)
    return _prepared(config, base, store, source, plan)[0]["train"]


def _prepared(
    config: TaskConfig, base: Path, store: Store, source: Source, plan: Outline
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The rows of every part, and what is to be said of their inputs."""
    encoder = _encoder(config, base, isinstance(source, Digits))
    key = recipe_hash([_EDITION, plan.key, encoder.recipe()])
    with store.made("data", key, f"{source.name}, for {base}") as folder:
        if folder is not None:
            _encode(folder, encoder, source, plan)
    if folder is not None:
        trim(store)
    place = store.path("data", key)
    rows = {
        name: Rows(encoder.read(place, name), part.labels, plan.labels, part.ids) for name, part in plan.parts.items()
    }
    return rows, tuple(json.loads((place / NOTICES).read_text()))


def _encode(folder: Path, encoder: Any, source: Source, plan: Outline) -> None:
    notices: list[str] = []
    for split in dict.fromkeys(part.split for part in plan.parts.values()):
        raw = read_split(source, split)
        for name, part in plan.parts.items():
            if part.split == split:
                notices += encoder.write(folder, name, raw, part.rows)
    (folder / NOTICES).write_text(json.dumps(notices))


def _encoder(config: TaskConfig, base: Path, digits: bool) -> ImageEncoder | TextEncoder | CompletionEncoder:
    if config.causal:
        return CompletionEncoder.of(base, config.data)
    if config.task.kind == "text-classification":
        return TextEncoder(base, config.data.text_column, config.data.max_length)
    return ImageEncoder.of(base, config.data.image_column, digits)


def holdout(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """The rows that a node trains on and those that it keeps back; at least one each, where fraction > 0
    and there are two."""
    order = np.random.default_rng(seed).permutation(len(rows))
    kept, trained = np.split(order, [_share(len(rows), fraction)])
    return rows.select(np.sort(trained)), rows.select(np.sort(kept))

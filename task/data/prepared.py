"""From a configured source to prepared rows. Each step runs once; its result is kept in the store.

`data_index` needs no model: it finds the train, validation and test rows and their labels. `prepare` adds the model's
inputs, encoded for the base in a folder. The second time, both only read a few small files and map others into memory.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from task.config import TaskConfig
from task.data.index import DataIndex, Part, read_index, write_index
from task.data.partitioners.none import OwnRows
from task.data.parts import columns_of, found_in, has_labels, input_columns, parts_of, reading_of, share
from task.data.raw import DataError
from task.data.request import Reading
from task.data.rows import Rows
from task.data.sources.base import Source, read_split
from task.data.sources.registry import open_source
from task.data.splits import called
from task.kinds import registry as kinds
from task.kinds.base import Encoder
from task.storage.retention import trim
from task.storage.store import Store, recipe_hash

__all__ = [
    "DataError",
    "DataIndex",
    "Part",
    "Parts",
    "Rows",
    "columns_of",
    "data_index",
    "holdout",
    "index_file",
    "prepare",
    "prepare_file",
]

NOTICES = "notices.json"
_EDITION = 3  # version of the stored format; a new number makes everything again


@dataclass(frozen=True)
class Parts:
    """The prepared rows of a task. `notices` are sentences on detected formats and on rows left out or cut."""

    train: Rows
    validation: Rows
    test: Rows
    labels: tuple[str, ...]
    notices: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------ data index
def data_index(config: TaskConfig, store: Store) -> DataIndex:
    """Return the parts of `data.name` and the label names. Random choices are the same for every seed of a run.

    Raises DataError for a source, split or column that does not exist, and for labels that cannot be read.
    """
    return _task_index(config, store, _source(config))


def _task_index(config: TaskConfig, store: Store, source: Source) -> DataIndex:
    data = config.data
    splits = [data.train_split, data.validation_split, data.test_split]
    sizes = [
        data.validation_fraction,
        data.test_fraction,
        data.train_rows,
        data.validation_rows,
        data.test_rows,
    ]
    return _index(store, source, config, [splits, sizes], lambda: parts_of(config, source))


def index_file(
    config: TaskConfig, store: Store, path: str | Path, labels: Sequence[str] = (), most_labels: int = 0
) -> DataIndex:
    """Return the index of a node's own file or folder, with the single part `train`. A classifier's labels must be
    among `labels` (empty: any), and at most `most_labels` (0: any number), as `labels.check_few` checks.

    Raises DataError as `data_index` does.
    """
    return _own_index(config, store, _own(config, path), labels, most_labels)


def _own_index(
    config: TaskConfig, store: Store, source: Source, labels: Sequence[str], most_labels: int = 0
) -> DataIndex:
    config = replace(config, data=replace(config.data, partitioner=OwnRows()))  # a node's own rows are not divided

    def parts() -> DataIndex:
        splits = list(source.splits())
        asked = config.data.train_split
        split = splits[0] if len(splits) == 1 else called(asked, splits, source.name) or asked
        found = found_in(config, source, split, labels, most_labels)
        return DataIndex("", found.labels, {"train": found.part}, notices=found.notices, by_row=found.by_row)

    choices = [config.data.train_split, list(labels), *([most_labels] if most_labels else [])]
    return _index(store, source, config, choices, parts)


def _source(config: TaskConfig) -> Source:
    return open_source(config.data.name, config.data.subset, config.data.train_split)


def _own(config: TaskConfig, path: str | Path) -> Source:
    place = str(Path(path).expanduser().absolute())
    return open_source(place, train_split=config.data.train_split, public="the node's own data cannot be read")


def _index(
    store: Store,
    source: Source,
    config: TaskConfig,
    choices: object,
    parts: Callable[[], DataIndex],
) -> DataIndex:
    data, label_column = config.data, config.data.label_column if has_labels(config) else ""
    columns = [*input_columns(config), label_column, data.id_column, data.labels]
    written = [data.delimiter, data.encoding, data.skip_empty]
    key = recipe_hash([_EDITION, config.task.kind.name, source.stamp(), columns, written, choices])
    with store.made("indexes", key, source.name) as folder:
        if folder is not None:
            write_index(folder, parts())
    return read_index(store.path("indexes", key), key)


# ------------------------------------------------------------------------------------------------ inputs
def prepare(config: TaskConfig, base: Path, store: Store) -> Parts:
    """Return train, validation and test rows, ready for the model whose files are in folder `base`.

    Raises DataError as `data_index` does, for inputs that cannot be encoded, and for a base that does not describe its
    inputs.
    """
    source = _source(config)
    plan = _task_index(config, store, source)
    rows, notices = _prepared(config, base, store, source, plan)
    return Parts(rows["train"], rows["validation"], rows["test"], plan.labels, plan.notices + notices)


def prepare_file(
    config: TaskConfig, base: Path, store: Store, path: str | Path, labels: Sequence[str], most_labels: int = 0
) -> Rows:
    """Return the rows of a node's own file or folder. Raises DataError as `index_file` and `prepare` do."""
    source = _own(config, path)
    plan = _own_index(config, store, source, labels, most_labels)
    rows, notices = _prepared(config, base, store, source, plan)
    return replace(rows["train"], notices=notices)


def _prepared(
    config: TaskConfig, base: Path, store: Store, source: Source, plan: DataIndex
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Return the rows of every part, and notices on their inputs."""
    encoder = kinds.of(config).encoder(base, config.data, plan.labels, source)
    key = recipe_hash([_EDITION, plan.key, encoder.recipe()])
    with store.made("data", key, f"{source.name}, for {base}") as folder:
        if folder is not None:
            _encode(folder, encoder, source, plan, reading_of(config, ids=False))
    if folder is not None:
        trim(store)
    place = store.path("data", key)
    rows = {
        name: Rows(encoder.read(place, name), part.labels, plan.classes, part.ids, key=f"{key} {name}")
        for name, part in plan.parts.items()
    }
    return rows, tuple(json.loads((place / NOTICES).read_text()))


def _encode(folder: Path, encoder: Encoder, source: Source, plan: DataIndex, reading: Reading) -> None:
    notices: list[str] = []
    for split in dict.fromkeys(part.split for part in plan.parts.values()):
        raw = read_split(source, split, reading)
        for name, part in plan.parts.items():
            if part.split == split:
                notices += encoder.write(folder, name, raw, part.rows)
    (folder / NOTICES).write_text(json.dumps(notices))


def holdout(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Return the rows that a node trains on and those that it holds out: at least one each, if fraction > 0 and there
    are two rows."""
    order = np.random.default_rng(seed).permutation(len(rows))
    kept, trained = np.split(order, [share(len(rows), fraction)])
    return rows.select(np.sort(trained)), rows.select(np.sort(kept))

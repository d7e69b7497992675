"""Rows without labels, which a tuned model is asked about: those of a file, or values from a command line."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from task.config import TaskConfig
from task.data.raw import DataError, Raw, Table
from task.data.request import Reading
from task.data.sources.base import Source, TableFile, read_cells, read_split
from task.data.tables.columns import of_values
from task.kinds import registry as kinds

GIVEN = "the values given"


def read_rows(config: TaskConfig, source: Source) -> Raw:
    """Return the rows of a source, with all their columns and cells as they are written.

    Raises DataError for a source with several splits or without rows, and for a missing input column.
    """
    reading = _reading(config)
    if isinstance(source, TableFile):
        return read_cells(source, reading)
    splits = source.splits()
    if len(splits) != 1:
        raise DataError(f"{source.name} has the splits {', '.join(map(repr, splits))}; name a file of one of them")
    return read_split(source, splits[0], reading)


def values_as_rows(config: TaskConfig, values: Sequence[str]) -> Table:
    """Return texts, or paths of images relative to the current folder, as rows."""
    rows = [kinds.of(config).question(config.data, value) for value in values]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return replace(of_values(Path(GIVEN), columns, columns, []), folder=Path.cwd())


def with_inputs(config: TaskConfig, raw: Raw) -> NDArray[np.int64]:
    """Return the rows that have all inputs. Raises DataError for an input of the wrong type."""
    kind = kinds.of(config)
    empty = np.zeros(len(raw), bool)
    for column in kind.asked(config.data):
        empty |= kind.missing(raw, column)
    return np.flatnonzero(~empty)


def _reading(config: TaskConfig) -> Reading:
    data = config.data
    return Reading(None, kinds.of(config).asked(data), data.delimiter, data.encoding)

"""Several files of rows as one table."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from task.data.raw import DataError, Table
from task.data.request import Reading
from task.data.tables.columns import dataset_of


def joined(tables: Sequence[Table], reading: Reading) -> Table:
    """Return the rows of tables, concatenated. If their types name classes differently or in another order, labels
    become the names. Raises DataError if a table lacks a required column, or types differ."""
    import datasets

    if len(tables) == 1:
        return tables[0]
    columns = sorted({name for table in tables for name in table.dataset.column_names})
    for table in tables:
        for column in (*reading.required, *columns):
            table.require(column, reading.required.get(column, ""))
    tables = _renamed([table for table in tables if len(table)] or list(tables[:1]))
    parts = [table.dataset.select_columns(columns) for table in tables]
    _check_types(tables, columns)
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])]).tolist()
    lines = [table.lines for table in tables if table.lines is not None]
    return replace(
        tables[0],
        dataset=datasets.concatenate_datasets(parts),
        lines=np.concatenate(lines) if len(lines) == len(tables) else None,
        files=tuple(zip(starts, (table.place for table in tables), strict=True)),
        notices=tuple(dict.fromkeys(said for table in tables for said in table.notices)),
    )


def _renamed(tables: Sequence[Table]) -> list[Table]:
    """Return the tables, with names instead of numbers in columns whose types name their classes differently."""
    import datasets

    found = list(tables)
    for column in {name for table in tables for name in table.dataset.column_names}:
        types = [table.dataset.features.get(column) for table in tables]
        if any(isinstance(kind, datasets.ClassLabel) for kind in types) and any(kind != types[0] for kind in types):
            found = [_named(table, column) for table in found]
    return found


def _named(table: Table, column: str) -> Table:
    import datasets
    import pyarrow as pa

    kind = table.dataset.features.get(column)
    if not isinstance(kind, datasets.ClassLabel):
        return table
    codes = table.dataset.data.column(column).to_pylist()
    names = [None if code is None or code < 0 else kind.names[code] for code in codes]
    columns: dict[str, Any] = {name: table.dataset.data.column(name) for name in table.dataset.column_names}
    plain = dataset_of(pa.table(columns | {column: pa.array(names, pa.string())}))
    others = {name: feature for name, feature in table.dataset.features.items() if name != column}
    return replace(table, dataset=plain.cast(datasets.Features({**plain.features, **others})))


def _check_types(tables: Sequence[Table], columns: Sequence[str]) -> None:
    for column in columns:
        first = tables[0].dataset.features[column]
        for table in tables[1:]:
            if (other := table.dataset.features[column]) != first:
                problem = f"column '{column}' has another type in one file than in another"
                raise DataError(f"{table.place}: {problem}: {other}, and {first} in {tables[0].place}", problem)

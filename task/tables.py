"""Files of rows, read into a `datasets.Dataset`: csv, json, jsonl, parquet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from task.raw import DataError


def _csv(path: Path) -> Any:
    import datasets
    import pyarrow as pa
    from pyarrow import csv

    try:
        table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a csv file: {error}") from error
    return datasets.Dataset(table)


def _parquet(path: Path) -> Any:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()  # not read_table: that takes folder names for columns
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a parquet file: {error}") from error
    return datasets.Dataset(table)


def _json(path: Path) -> Any:
    try:
        records = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not a json file: {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{path} holds no list of rows; one row a line is a .jsonl file")
    return _table(path, records)


def _jsonl(path: Path) -> Any:
    records = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not json: {error}") from error
    return _table(path, records)


def _table(path: Path, records: list[Any]) -> Any:
    import datasets
    import pyarrow as pa

    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{path}, row {row}: not an object with named values, but {record!r:.60}")
    columns: dict[str, list[Any]] = {name: [] for record in records for name in record}
    for name, values in columns.items():
        values += [record.get(name) for record in records]
        try:
            pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            _name_odd_value(path, name, values)
            raise DataError(f"{path}, column '{name}': {error}") from error
    return datasets.Dataset.from_dict(columns)


def _name_odd_value(path: Path, column: str, values: list[Any]) -> None:
    kinds = [type(value) for value in values if value is not None]
    for row, value in enumerate(values):
        if value is not None and type(value) is not kinds[0]:
            problem = f"holds {value!r:.60}, where rows before hold {kinds[0].__name__}"
            raise DataError.at(str(path), row, column, problem)


READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}

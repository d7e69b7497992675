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
        return datasets.Dataset(table)  # which is where names of columns are decoded
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _is_no(path, "csv", error) from error


def _parquet(path: Path) -> Any:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()  # not read_table: that takes folder names for columns
        return datasets.Dataset(table)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _is_no(path, "parquet", error) from error


def _json(path: Path) -> Any:
    try:
        records = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _is_no(path, "json", error) from error
    if not isinstance(records, list):
        raise DataError(f"{path} holds no list of rows; one row a line is a .jsonl file", "the data is no list of rows")
    return _table(path, records)


def _jsonl(path: Path) -> Any:
    records = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is not json: {error}", "a line is not json") from error
    return _table(path, records)


def _is_no(path: Path, kind: str, error: Exception) -> DataError:
    """Parsers quote what they stumbled on."""
    return DataError(f"{path} is not a {kind} file: {error}", "the data is not of the kind that its name says")


def _table(path: Path, records: list[Any]) -> Any:
    import datasets
    import pyarrow as pa

    for row, record in enumerate(records):
        if not isinstance(record, dict):
            problem = "not an object with named values"
            raise DataError(f"{path}, row {row}: {problem}, but {record!r:.60}", f"a row is {problem}")
    columns: dict[str, list[Any]] = {name: [] for record in records for name in record}
    for name, values in columns.items():
        values += [record.get(name) for record in records]
        try:
            pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            _name_odd_value(path, name, values)
            raise DataError(f"{path}, column '{name}': {error}") from error
    return datasets.Dataset.from_dict(columns)


def _name_odd_value(path: Path, column: str, values: list[Any]) -> None:
    kinds = [type(value) for value in values if value is not None]
    for row, value in enumerate(values):
        if value is not None and type(value) is not kinds[0]:
            problem = f"column '{column}': holds {value!r:.60}, where rows before hold {kinds[0].__name__}"
            raise DataError(f"{path}, row {row}, {problem}", "a column holds values of several types")


READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}

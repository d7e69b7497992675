"""JSON files: a list of objects, one object per line, or a table by columns."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from task.data.raw import DataError, Table
from task.data.request import Reading
from task.data.sources.base import TableFile
from task.data.tables.columns import of_values
from task.data.tables.decoding import WRONG_KIND, encoding_of, text_of

Row = tuple[int, Any]  # the line at which it begins (0: unknown), and the value
SEVERAL = "the file has several lists of rows; save each as a file of its own"
NO_ROWS = "the data is not a list of rows"
FORMS = "one object a line, or a list of objects"


@dataclass(frozen=True)
class Json(TableFile):
    """A JSON file of any of these forms, whatever its ending."""

    suffixes = (".json", ".jsonl", ".ndjson")
    packable = True

    @classmethod
    def read(cls, path: Path, suffix: str, reading: Reading) -> Table:
        """Return the rows. Raises DataError, with the line of invalid JSON."""
        return _read(path, suffix, reading)


def _read(path: Path, suffix: str, reading: Reading) -> Table:
    encoding, notices = encoding_of(path, reading.encoding)
    with text_of(path, encoding) as file:
        start = list(itertools.islice((line for line in file if line.strip()), 2))
    if _by_lines(suffix, start):
        return _collected(path, _by_line(path, encoding), reading, notices)
    found, said = _within(path, _whole(path, encoding), reading)
    return _collected(path, ((0, row) for row in found), reading, (*notices, *said))


def _by_lines(suffix: str, start: Sequence[str]) -> bool:
    """Return whether a file with this start has one object per line."""
    if suffix in (".jsonl", ".ndjson") and not (start and start[0].lstrip().startswith("[")):
        return True
    try:
        return len(start) > 1 and isinstance(json.loads(start[0]), dict)
    except (ValueError, RecursionError):
        return False


def _by_line(path: Path, encoding: str) -> Iterator[Row]:
    with text_of(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", type(error).__name__)
                raise DataError(f"{path}, line {number} is not json: {reason}", "a line is not json") from error


def _whole(path: Path, encoding: str) -> Any:
    try:
        with text_of(path, encoding) as file:
            return json.loads(file.read())
    except json.JSONDecodeError as error:
        problem = f"it is not valid JSON: {error.msg} in line {error.lineno}"
        raise DataError(f"{path} is not a json file of {FORMS}: {problem}", WRONG_KIND) from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a json file: {type(error).__name__}", WRONG_KIND) from error


def _within(path: Path, found: Any, reading: Reading) -> tuple[Sequence[Any], tuple[str, ...]]:
    """Return the rows of a document, and notices on its form."""
    if isinstance(found, list):
        return found, ()
    if not isinstance(found, dict):
        raise DataError(f"{path} has no list of rows, but {type(found).__name__}", NO_ROWS)
    lists = {key: value for key, value in found.items() if isinstance(value, list) and value and _objects(value)}
    if len(lists) > 1:
        raise DataError(f"{path}: {SEVERAL}: {', '.join(map(repr, lists))[:300]}", SEVERAL)
    if lists:
        (key, rows) = next(iter(lists.items()))
        return rows, (f"{path} is read from its list '{key:.80}'",)
    if columns := _by_columns(found):
        return columns, (f"{path} is read column by column",)
    needed = [found.get(name, []) for name in reading.required]
    if found and not any(isinstance(value, list | dict) for value in needed or found.values()):
        return [found], ()
    raise DataError(f"{path} has no list of rows; rows are {FORMS}", NO_ROWS)


def _objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _by_columns(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows from lists of equal length by column, or from cells by column and row, as pandas writes them."""
    columns = list(found.values())
    if columns and all(isinstance(column, dict) for column in columns):
        keys = list(columns[0])
        if all(list(column) == keys for column in columns):
            return [{name: column[key] for name, column in found.items()} for key in keys]
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)]
    return []


def _collected(path: Path, rows: Iterator[Row], reading: Reading, notices: tuple[str, ...]) -> Table:
    names: dict[str, None] = {}
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    for row, (line, record) in enumerate(rows):
        if not isinstance(record, dict):
            problem = "not an object with named values"
            where = f"row {row} (line {line})" if line else f"row {row}"
            raise DataError(f"{path}, {where}: {problem}, but {record!r:.60}", f"a row is {problem}")
        names |= dict.fromkeys(record)
        for name in reading.wanted(list(record)):
            columns.setdefault(name, [None] * row).append(record[name])
        lines.append(line)
        for values in columns.values():
            values.extend([None] * (row + 1 - len(values)))
    return of_values(path, columns, names, lines if any(lines) else [], notices)

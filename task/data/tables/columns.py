"""Columns read row by row and collected into a table; and the types of text cells."""

import re
import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from task.data.raw import DataError, Table
from task.data.request import Reading

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none"})  # in a column of numbers, in any case
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")  # 007 is a name, not a number
NUMBER = re.compile(r"[-+]?((0|[1-9]\d{0,14})(\.\d*)?|\.\d+)")
TRUTH = {"true": True, "false": False}
ROWS, CHARACTERS = 10_000, 2**26  # the most rows and characters kept as Python objects
HALF = re.compile("[\ud800-\udfff]")  # an unpaired surrogate: half of a character
INSTEAD = "\ufffd"


class Columns:
    """Columns that grow by rows. Values are packed into arrow arrays, a few thousand rows at a time."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._open: list[Sequence[str]] = []
        self._done: list[list[Any]] = [[] for _ in self.names]
        self._lines = array("q")
        self._size = 0

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, values: Sequence[str], line: int) -> None:
        """Add a row of texts, and the line at which it begins."""
        self._open.append(values)
        self._lines.append(line)
        self._size += sum(map(len, values))
        if self._size > CHARACTERS or len(self._lines) % ROWS == 0:
            self._pack()

    def table(self, path: Path, names: tuple[str, ...], notices: tuple[str, ...]) -> Table:
        """Return the table of all rows; `names` are all columns of the file."""
        import pyarrow as pa

        self._pack()
        columns = {
            name: pa.chunked_array(parts, pa.string()) for name, parts in zip(self.names, self._done, strict=True)
        }
        lines = np.frombuffer(self._lines, np.int64) if self._lines else np.empty(0, np.int64)
        return Table(str(path), dataset_of(pa.table(columns)), path.parent, names, lines, notices=notices)

    def _pack(self) -> None:
        import pyarrow as pa

        for values, parts in zip(zip(*self._open, strict=True), self._done, strict=bool(self._open)):
            parts.append(pa.array(values, pa.string()))
        self._open, self._size = [], 0


def dataset_of(table: Any) -> Any:
    """Return the `datasets.Dataset` of an arrow table. Its fingerprint is random: a hash of the content is slow."""
    import datasets

    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex)


def typed(table: Table) -> Table:
    """Return a table of texts with columns of numbers and of booleans converted."""
    import pyarrow as pa

    columns = {}
    for name in table.dataset.column_names:
        cells = table.dataset.data.column(name)
        values = _meant(cells)
        columns[name] = cells if values is None else pa.array(values)
    return replace(table, dataset=dataset_of(pa.table(columns)))


def _meant(cells: Any) -> list[Any] | None:
    """Return the values of cells that are all whole numbers, all numbers, or all true or false; None for texts."""
    present = [cell for cell in _distinct(cells) if cell.strip().lower() not in MISSING]
    if not present:
        return None
    for pattern, make in ((WHOLE, int), (NUMBER, float)):
        if all(pattern.fullmatch(cell.strip()) for cell in present):
            return [make(cell) if cell.strip().lower() not in MISSING else None for cell in cells.to_pylist()]
    if all(cell.strip().lower() in TRUTH for cell in present):
        return [TRUTH.get(cell.strip().lower()) for cell in cells.to_pylist()]
    return None


def _distinct(cells: Any) -> Iterator[str]:
    """Yield each distinct cell, up to the first that is not a number, missing, true or false: the column is text."""
    seen = set()
    for chunk in cells.chunks:
        for cell in chunk:
            text = cell.as_py()
            if text not in seen:
                seen.add(text)
                yield text
                word = text.strip().lower()
                if word not in MISSING and word not in TRUTH and not NUMBER.fullmatch(word):
                    return


def of_values(
    path: Path, columns: dict[str, list[Any]], names: Iterable[str], lines: Sequence[int], notices: tuple[str, ...] = ()
) -> Table:
    """Return the table of columns of any type. Raises DataError for a column with values of several types."""
    import pyarrow as pa

    arrays, halves = {}, 0
    for name, values in columns.items():
        whole = [_whole(value) for value in values]
        halves += sum(one != other for one, other in zip(whole, values, strict=True) if isinstance(one, str | list))
        try:
            arrays[name] = pa.array(whole)
        except (pa.ArrowException, OverflowError, UnicodeError, RecursionError) as error:
            _name_odd_value(path, name, whole, lines)
            raise DataError(f"{path}, column '{name}': {error}") from error
    said = (f"{path}: {halves} cells have half of a character, replaced by U+FFFD",) if halves else ()
    rows = np.array(lines, np.int64) if len(lines) else None
    try:
        return Table(
            str(path), dataset_of(pa.table(arrays)), path.parent, tuple(names), rows, notices=(*notices, *said)
        )
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}", "a column has values that cannot be read") from error


def twice(path: object, name: str) -> DataError:
    """Return the error for a column whose name occurs twice."""
    problem = f"column '{name}' is there twice"
    return DataError(f"{path}: {problem}; rename one", problem)


def wanted_once(path: Path, wanted: list[str]) -> list[str]:
    """Return these names of columns. Raises DataError if a name occurs twice."""
    for name in wanted:
        if wanted.count(name) > 1:
            raise twice(path, name)
    return wanted


def table_of(place: str, dataset: Any, folder: Path | None, reading: Reading) -> Table:
    """Return the columns to read from a data set, as stored, whatever output format it was saved with."""
    names = tuple(dataset.column_names)
    picked = dataset.with_format(None).select_columns(reading.wanted(names))
    return replace(Table(place, picked, folder), names=names)


def _whole(value: Any) -> Any:
    """Return a text, or texts in lists, without unpaired surrogates; None for NaN, which marks missing values in some
    tables."""
    if isinstance(value, str):
        return HALF.sub(INSTEAD, value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return None if isinstance(value, float) and value != value else value


def _name_odd_value(path: Path, column: str, values: Sequence[Any], lines: Sequence[int]) -> None:
    """Raise DataError for the first value, or part of one, of another type than those before it."""
    kinds: dict[str, type] = {}
    for row, value in enumerate(values):
        where = f"row {row} (line {lines[row]})" if len(lines) else f"row {row}"
        for place, inside, part in _parts(value):
            kind = kinds.setdefault(inside, type(part))
            if type(part) is not kind and not {kind, type(part)} <= {int, float}:
                problem = f"column '{column}'{place}: holds {part!r:.60}, but those before have {kind.__name__}"
                raise DataError(f"{path}, {where}, {problem}", "a column has values of several types")
            if isinstance(part, int) and abs(part) >= 2**63:
                problem = f"column '{column}': a whole number of more than 64 bits"
                raise DataError(f"{path}, {where}, {problem}", problem)


def _parts(value: Any, place: str = "", inside: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield a value and all values in it, except missing ones: where each is, where all of its kind are, and itself."""
    if value is None:
        return
    yield place, inside, value
    if isinstance(value, list):
        for number, item in enumerate(value):
            word = "turn" if isinstance(item, dict) else "item"
            yield from _parts(item, f"{place}, {word} {number}", f"{inside}[]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _parts(item, f"{place}, '{name}'", f"{inside}.{name}")

"""Tables in text files (csv, tsv and similar), and plain text with one row per line."""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from task.data.raw import DataError, Table, cure, lacks
from task.data.request import Reading, delimiter_of
from task.data.sources.base import TableFile
from task.data.tables.columns import Columns, twice
from task.data.tables.decoding import encoding_of, text_of

DELIMITERS = (",", ";", "\t", "|")
USUAL = {".tsv": "\t", ".tab": "\t", ".psv": "|", ".txt": "\t"}
WORDS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
ESCAPED, DOUBLED = re.compile(r'\\["\\]'), {'\\"': '""', "\\\\": "\\"}
SAID = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)  # a first line that sets the delimiter for Excel
LARGEST_CELL = 2**31 - 1
TEXT = "text"  # the column of a file of lines


@dataclass(frozen=True)
class Dialect:
    """The format of a table. `quotes` says how quotes are read: as usual, also after a space, escaped by backslashes,
    or literally."""

    delimiter: str
    quotes: str = "usual"

    def reader(self, lines: Iterable[str]) -> Any:
        """Return a reader of rows of cells. It raises csv.Error for quotes that do not end."""
        csv.field_size_limit(LARGEST_CELL)
        ways: dict[str, dict[str, Any]] = {
            "usual": {},
            "spaced": {"skipinitialspace": True},
            "backslash": {},
            "none": {"quoting": csv.QUOTE_NONE},
        }
        if self.quotes == "backslash":
            lines = (ESCAPED.sub(lambda found: DOUBLED[found[0]], line) for line in lines)
        return csv.reader(lines, delimiter=self.delimiter, strict=True, **ways[self.quotes])

    def others(self) -> list["Dialect"]:
        """Return the dialects to try if this one fails. Texts rarely have tabs, so quotes may be literal then."""
        kinds = [*(["none"] if self.delimiter == "\t" else []), "usual", "spaced", "backslash"]
        return [Dialect(self.delimiter, kind) for kind in kinds if kind != self.quotes]


@dataclass(frozen=True)
class Delimited(TableFile):
    """A file whose first line names its columns. A .txt file that is no table has one column `text`, its lines."""

    suffixes = (".csv", ".tsv", ".tab", ".psv", ".txt")
    packable = True
    untyped = True

    @classmethod
    def read(cls, path: Path, suffix: str, reading: Reading) -> Table:
        """Return the rows, all cells as text."""
        return _read(path, suffix, reading)


def _read(path: Path, suffix: str, reading: Reading) -> Table:
    encoding, notices = encoding_of(path, reading.encoding)
    with text_of(path, encoding) as file:
        start = list(itertools.islice((line for line in file if line.strip()), 1))
    usual = USUAL.get(suffix, ",")
    if start and (said := SAID.fullmatch(start[0])):
        reading = replace(reading, delimiter=reading.delimiter or said[1])
        return _first(path, encoding, Dialect(delimiter_of(reading.delimiter)), reading, notices)
    dialect, names = _dialect(start, reading, usual)
    if suffix == ".txt" and not (len(names) > 1 and set(reading.required) <= set(names)):
        return _lines(path, encoding, notices)
    if dialect.delimiter != usual:
        word = WORDS.get(dialect.delimiter, repr(dialect.delimiter))
        notices += () if reading.delimiter else (f"{path} is read with {word} between cells",)
    return _first(path, encoding, dialect, reading, notices)


def _first(path: Path, encoding: str, dialect: Dialect, reading: Reading, notices: tuple[str, ...]) -> Table:
    """Return the table in the first dialect that fits all rows."""
    try:
        return _table(path, encoding, dialect, reading, notices)
    except _BadTable as problem:
        for other in dialect.others():
            said = (f"{path} is read with quotes as they stand",) if other.quotes == "none" else ()
            try:
                return _table(path, encoding, other, reading, notices + said)
            except _BadTable:
                continue
        raise DataError(problem.message, problem.public) from problem


class _BadTable(ValueError):
    """A file that does not fit a dialect."""

    def __init__(self, message: str, public: str) -> None:
        super().__init__(message)
        self.message, self.public = message, public


def _dialect(start: Sequence[str], reading: Reading, usual: str) -> tuple[Dialect, list[str]]:
    """Return the dialect in which the first line has all required columns, else the one that finds most names."""
    given = delimiter_of(reading.delimiter)
    delimiters = [given] if given else sorted(DELIMITERS, key=lambda one: one != usual)
    found = [
        (Dialect(one, quotes), _names(start, Dialect(one, quotes)))
        for one in delimiters
        for quotes in ("usual", "spaced")
    ]
    for dialect, names in found:
        if set(reading.required) <= set(names):
            return dialect, names
    return max(found, key=lambda item: len(item[1]))


def _names(start: Sequence[str], dialect: Dialect) -> list[str]:
    try:
        return next(dialect.reader(start), [])
    except csv.Error:  # a name with a line break
        return []


def _table(path: Path, encoding: str, dialect: Dialect, reading: Reading, notices: tuple[str, ...]) -> Table:
    with text_of(path, encoding) as file:
        rows = _rows(path, dialect.reader(file))
        _, names = next(rows, (1, []))
        if len(names) < 3 and SAID.fullmatch(dialect.delimiter.join(names)):
            _, names = next(rows, (1, []))
        _check_names(path, names, reading)
        places, width = _places(path, names, reading), len(names)
        columns = Columns([names[place] for place in places])
        for line, cells in rows:
            if cells == names and width > 1:
                problem = "a row repeats the names of columns; remove it"
                raise DataError(f"{path}, row {len(columns)} (line {line}): {problem}", problem)
            if len(cells) != width:
                _check_width(path, len(columns), line, cells, names, places, dialect)
            columns.add([cells[place] for place in places], line)
    return columns.table(path, tuple(names), notices)


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, with the lines at which they begin."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = "quotes do not end where a cell does"
            advice = 'quotes inside a quoted cell are doubled ("")'
            raise _BadTable(f"{path}, line {line}: {problem}; {advice}", f"{problem}; {advice}") from error
        if cells is None:
            return
        if len(cells) > 1 or (cells and cells[0].strip()):
            yield line, cells


def _check_names(path: Path, names: Sequence[str], reading: Reading) -> None:
    """Raise DataError if the first line has none of the required columns."""
    if reading.required and not set(reading.required) & set(names):
        column, key = next(iter(reading.required.items()))
        said = f"{path} {lacks('column', column, names, key)}{cure(column, key, names)}"
        raise DataError(f"{said}; its first line names the columns", f"there is no column '{column}'")


def _places(path: Path, names: Sequence[str], reading: Reading) -> list[int]:
    wanted = reading.wanted(names)
    for name in wanted:
        if name and wanted.count(name) > 1:
            raise twice(path, name)
    return [place for place, name in enumerate(names) if name in wanted and name]


def _check_width(
    path: Path, row: int, line: int, cells: Sequence[str], names: Sequence[str], places: Sequence[int], dialect: Dialect
) -> None:
    """Raise for extra cells that are not empty, and for missing cells in columns that are read."""
    few = len(cells) <= max(places, default=0)
    if not few and not any(cell.strip() for cell in cells[len(names) :]):
        return
    problem = "a row has another number of cells than the first line has names"
    word = WORDS.get(dialect.delimiter, repr(dialect.delimiter))
    advice = f"a cell with {word} in it stands in double quotes; data.delimiter says what is between cells"
    counts = f"{len(cells)} cells, where the first line names {len(names)} columns"
    raise _BadTable(f"{path}, row {row} (line {line}) has {counts}; {advice}", problem)


def _lines(path: Path, encoding: str, notices: tuple[str, ...]) -> Table:
    columns = Columns([TEXT])
    with text_of(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                columns.add([line.rstrip("\r\n")], number)
    return columns.table(
        path, (TEXT,), (*notices, f"{path} is read line by line: each is a row, its column is '{TEXT}'")
    )

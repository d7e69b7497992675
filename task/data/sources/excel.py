"""The first sheet of an Excel workbook."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from task.data.raw import DataError, Table
from task.data.request import Reading
from task.data.sources.base import TableFile
from task.data.tables.columns import of_values, wanted_once
from task.data.tables.decoding import WRONG_KIND


@dataclass(frozen=True)
class Excel(TableFile):
    """A workbook whose first row names the columns. Needs openpyxl."""

    suffixes = (".xlsx",)

    @classmethod
    def read(cls, path: Path, suffix: str, reading: Reading) -> Table:
        """Return the rows of the first sheet. Formulas have the values computed when it was saved."""
        return _read(path, reading)


def _read(path: Path, reading: Reading) -> Table:
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError as error:
        problem = "sheets need openpyxl: pip install 'thistledown[excel]', or save the sheet as .csv"
        raise DataError(f"{path}: {problem}", problem) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheet = book.worksheets[0]
            rows = [list(row) for row in sheet.iter_rows(values_only=True)]
            sheets = len(book.worksheets)
        finally:
            book.close()
    except Exception as error:  # a workbook is a zip of XML, and its reader raises errors of many types
        raise DataError(f"{path} is not a workbook: {error}", WRONG_KIND) from error
    said = (f"{path} has {sheets} sheets; the first one is read",) if sheets > 1 else ()
    names = [str(name) if name is not None else "" for name in (rows[0] if rows else [])]
    wanted = wanted_once(path, reading.wanted([name for name in names if name]))
    filled = [(line, row) for line, row in enumerate(rows[1:], start=2) if any(cell is not None for cell in row)]
    places = {name: names.index(name) for name in wanted}
    columns = {name: [row[place] if place < len(row) else None for _, row in filled] for name, place in places.items()}
    return of_values(path, columns, [name for name in names if name], [line for line, _ in filled], said)

"""Files of rows, each read by its kind: tables in text, JSON, parquet, arrow, sheets."""

import importlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from task.data.raw import DataError, Table
from task.data.request import Reading
from task.data.tables.columns import dataset_of, of_values, typed
from task.data.tables.decoding import PACKED, members
from task.data.tables.delimited import read_delimited, twice
from task.data.tables.objects import KIND, read_json
from task.files.pointer import CURE, is_pointer

Reader = Callable[[Path, str, Reading], Table]
OTHERS = {  # kinds of which people have files, and what to do with them
    ".xls": "save it as .xlsx or .csv",
    ".xlsm": "save it as .xlsx or .csv",
    ".ods": "save it as .xlsx or .csv",
    ".dta": "save it as .csv or .parquet",
    ".sav": "save it as .csv or .parquet",
    ".sas7bdat": "save it as .csv or .parquet",
    ".h5": "save it as .parquet or .npz",
    ".hdf5": "save it as .parquet or .npz",
    ".orc": "save it as .parquet",
    ".npy": "save images and labels together as .npz",
    ".pkl": "a pickle can run code and is never read; save it as .parquet",
    ".pickle": "a pickle can run code and is never read; save it as .parquet",
    ".pt": "a pickle can run code and is never read; save it as .parquet or .npz",
    ".pth": "a pickle can run code and is never read; save it as .parquet or .npz",
    ".zip": "of one file of text (.csv, .json and so on) it is read; unpack others into a folder and name that",
    ".tar": "unpack it into a folder and name that",
    ".tgz": "unpack it into a folder and name that",
}


def kind_of(path: Path) -> str:
    """Return what decides how a file is read, such as .csv of rows.csv and rows.csv.gz; empty where it is not read."""
    kind = path.suffix.lower()
    if kind in PACKED:
        inner = _inside(path) if kind == ".zip" else path.with_suffix("")
        kind = inner.suffix.lower()
        return kind if kind in TEXTUAL else ""
    return kind if kind in READERS else ""


def stem_of(path: Path) -> str:
    """Return the name of a file without its endings."""
    return (
        Path(path.stem).stem
        if path.suffix.lower() in PACKED and Path(path.stem).suffix.lower() in READERS
        else path.stem
    )


def read_table(paths: Sequence[Path], reading: Reading) -> Table:
    """Return the rows of one file, or of several one after another. Raises DataError."""
    for path in paths:
        if is_pointer(path):
            raise DataError(f"{path}: {CURE}", "a file of the data is only a Git LFS pointer")
    tables = [READERS[kind_of(path)](path, kind_of(path), reading) for path in paths]
    if len(tables) > 1 or kind_of(paths[0]) in DELIMITED:
        from task.data.tables.joining import joined

        table = joined(tables, reading)
        return typed(table) if all(kind_of(path) in DELIMITED for path in paths) else table
    return tables[0]


def refusal(path: Path) -> DataError:
    """Say that a file is of no kind that is read, and what to do about it."""
    have = f"{', '.join(READERS)}, packed as {', '.join(PACKED)} or not, .npz"
    advice = OTHERS.get(path.suffix.lower(), "")
    said = f"{path} is none of the kinds of file that can be read: {have}"
    return DataError(said + (f"; {advice}" if advice else ""))


def _inside(path: Path) -> Path:
    """The name of the one file in an archive; none where there are more."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = members(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a zip file: {error}", KIND) from error
    return Path(inside[0] if len(inside) == 1 else "")


def _parquet(path: Path, kind: str, reading: Reading) -> Table:
    from pyarrow import parquet

    def table() -> Any:
        file = parquet.ParquetFile(path)  # not read_table: that takes folder names for columns
        names = file.schema_arrow.names
        return file.read(columns=_once(path, reading.wanted(names))), tuple(names)

    return _arrow_table(path, "parquet", reading, table)


def _arrow(path: Path, kind: str, reading: Reading) -> Table:
    """An IPC file, which feather is, or a stream of them, which `datasets` writes."""
    import pyarrow as pa

    def table() -> Any:
        with pa.memory_map(str(path)) as file:
            try:
                opened = pa.ipc.open_file(file)
            except pa.ArrowInvalid:
                file.seek(0)
                opened = pa.ipc.open_stream(file)
            return opened.read_all(), tuple(opened.schema.names)

    return _arrow_table(path, kind.removeprefix("."), reading, table)


def _arrow_table(path: Path, kind: str, reading: Reading, read: Callable[[], Any]) -> Table:
    """The columns that are read, in types that `datasets` knows. Parsers quote what they stumbled on."""
    import pyarrow as pa

    try:
        table, names = read()
        wanted = _once(path, reading.wanted(names))
        columns = {name: _plain(table.column(table.schema.names.index(name))) for name in wanted}
        dataset = dataset_of(pa.table(columns).replace_schema_metadata(table.schema.metadata))
        return Table(str(path), dataset, path.parent, names)
    except (pa.ArrowException, ValueError, OSError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a {kind} file: {error}", KIND) from error


def _once(path: Path, wanted: list[str]) -> list[str]:
    for name in wanted:
        if wanted.count(name) > 1:
            raise twice(path, name)
    return wanted


def _plain(column: Any) -> Any:
    """A column without the forms of strings that only save space, and decimals as whole numbers where they are."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.binary())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if isinstance(kind, pa.ExtensionType):
        return column.combine_chunks().storage if hasattr(column.combine_chunks(), "storage") else column
    return column


def _sheet(path: Path, kind: str, reading: Reading) -> Table:
    """The first sheet of a workbook. The values of formulas are those that were computed when it was saved."""
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
    except Exception as error:  # a workbook is a zip of XML, and its reader raises what it stumbles on
        raise DataError(f"{path} is not a workbook: {error}", KIND) from error
    said = (f"{path} has {sheets} sheets; the first one is read",) if sheets > 1 else ()
    names = [str(name) if name is not None else "" for name in (rows[0] if rows else [])]
    wanted = _once(path, reading.wanted([name for name in names if name]))
    filled = [(line, row) for line, row in enumerate(rows[1:], start=2) if any(cell is not None for cell in row)]
    places = {name: names.index(name) for name in wanted}
    columns = {name: [row[place] if place < len(row) else None for _, row in filled] for name, place in places.items()}
    return of_values(path, columns, [name for name in names if name], [line for line, _ in filled], said)


DELIMITED = (".csv", ".tsv", ".tab", ".psv", ".txt")
READERS: dict[str, Reader] = {
    **dict.fromkeys(DELIMITED, read_delimited),
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".xlsx": _sheet,
}
TEXTUAL = (*DELIMITED, ".json", ".jsonl", ".ndjson")  # kinds that may be packed

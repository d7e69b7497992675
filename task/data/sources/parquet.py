"""Tables in pyarrow's formats: parquet, and arrow (which includes feather)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from task.data.raw import DataError, Table
from task.data.request import Reading
from task.data.sources.base import TableFile
from task.data.tables.columns import dataset_of, wanted_once
from task.data.tables.decoding import WRONG_KIND


@dataclass(frozen=True)
class Parquet(TableFile):
    """A file with typed columns, which may name classes."""

    suffixes = (".parquet", ".arrow", ".feather")

    @classmethod
    def read(cls, path: Path, suffix: str, reading: Reading) -> Table:
        """Return the rows, in types that `datasets` supports."""
        return _parquet(path, reading) if suffix == ".parquet" else _arrow(path, suffix, reading)


def _parquet(path: Path, reading: Reading) -> Table:
    from pyarrow import parquet

    def table() -> Any:
        file = parquet.ParquetFile(path)  # not read_table, which adds folder names as columns
        names = file.schema_arrow.names
        return file.read(columns=wanted_once(path, reading.wanted(names))), tuple(names)

    return _arrow_table(path, "parquet", reading, table)


def _arrow(path: Path, suffix: str, reading: Reading) -> Table:
    """Return the table of an IPC file (feather), or of an IPC stream, which `datasets` writes."""
    import pyarrow as pa

    def table() -> Any:
        with pa.memory_map(str(path)) as file:
            try:
                opened = pa.ipc.open_file(file)
            except pa.ArrowInvalid:
                file.seek(0)
                opened = pa.ipc.open_stream(file)
            return opened.read_all(), tuple(opened.schema.names)

    return _arrow_table(path, suffix.removeprefix("."), reading, table)


def _arrow_table(path: Path, kind: str, reading: Reading, read: Callable[[], Any]) -> Table:
    """Return the columns to read, in types that `datasets` supports. Parser errors quote values: they stay private."""
    import pyarrow as pa

    try:
        table, names = read()
        wanted = wanted_once(path, reading.wanted(names))
        columns = {name: _plain(table.column(table.schema.names.index(name))) for name in wanted}
        dataset = dataset_of(pa.table(columns).replace_schema_metadata(table.schema.metadata))
        return Table(str(path), dataset, path.parent, names)
    except (pa.ArrowException, ValueError, OSError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a {kind} file: {error}", WRONG_KIND) from error


def _plain(column: Any) -> Any:
    """Return a column with plain strings in place of compact string types, and whole decimals as integers."""
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

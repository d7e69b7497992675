"""Files as people have them, written for tests, and what is to become of each."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet
from samples import png

Write = Callable[[Path], Path]
ROWS = [("good film", "pos"), ("dull", "neg"), ('a, very; "odd"\tone', "pos")]
PLAIN = [("good film", "pos"), ("dull", "neg")]
GIVEN = ("cat", "dog")


@dataclass(frozen=True)
class Case:
    """A file, and what becomes of it: rows of text and label, or what an error says; `said` is in a notice."""

    name: str
    write: Write
    expected: list[tuple[Any, str]] | str
    labels: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    peer: str = ""


def file(name: str, content: str | bytes, encoding: str = "utf-8") -> Write:
    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def folder(*writes: Write) -> Write:
    """Several files in a folder, which is what is named."""

    def write(place: Path) -> Path:
        for one in writes:
            one(place / "mine")
        return place / "mine"

    return write


def table(name: str, columns: dict[str, Any]) -> Write:
    """A parquet, arrow or feather file."""

    def write(place: Path) -> Path:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = columns if isinstance(columns, pa.Table) else pa.table(columns)
        if name.endswith(".parquet"):
            parquet.write_table(made, path)
        elif name.endswith(".feather"):
            feather.write_feather(made, str(path))
        else:
            with pa.ipc.new_stream(path, made.schema) as stream:
                stream.write_table(made)
        return path

    return write


def classes(names: list[str], codes: list[int | None], texts: list[str] | None = None) -> datasets.Dataset:
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    texts = texts or [f"row {number}" for number in range(len(codes))]
    return datasets.Dataset.from_dict({"text": texts, "label": codes}, features=kinds)


def typed(name: str, names: list[str], codes: list[int | None]) -> Write:
    """A parquet file whose label column is a ClassLabel."""

    def write(place: Path) -> Path:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        classes(names, codes).to_parquet(str(place / name))
        return place / name

    return write


def saved(made: Any) -> Write:
    def write(place: Path) -> Path:
        made.save_to_disk(str(place / "saved"))
        return place / "saved"

    return write


def zipped(inside: dict[str, str]) -> Write:
    def write(place: Path) -> Path:
        with zipfile.ZipFile(place / "rows.zip", "w") as archive:
            for name, content in inside.items():
                archive.writestr(name, content)
        return place / "rows.zip"

    return write


def sheet(rows: list[list[Any]], second: bool = False) -> Write:
    def write(place: Path) -> Path:
        book = pytest.importorskip("openpyxl").Workbook()
        for row in rows:
            book.active.append(row)
        if second:
            book.create_sheet("notes").append(["x"])
        book.save(place / "rows.xlsx")
        return place / "rows.xlsx"

    return write


CSV = "text,label\ngood film,pos\ndull,neg\n"
JSONL = '{"text": "good film", "label": "pos"}\n{"text": "dull", "label": "neg"}\n'
CAFE = [("café – “fin”", "pos"), ("dull", "neg")]
CAFE_CSV = "text,label\ncafé – “fin”,pos\ndull,neg\n"
LONG = "w" * 1_250_000
N = "row 0"


def picture(shade: int) -> bytes:
    return png(np.full((8, 8), shade, np.uint8))


def images(*places: str) -> Write:
    """A small image at every place, of a shade of its own, so that it can be told from others."""
    return folder(*(file(place, picture(number)) for number, place in enumerate(places, start=1)))

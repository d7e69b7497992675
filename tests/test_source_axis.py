"""Sources: who opens what, in which order, what every source does, and that another one is one file."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import datasets
import numpy as np
import pytest
from added import added, example
from samples import config, cut, png, text_columns, write_table
from written import file, folder

from task.data import prepared
from task.data.parts import reading_of
from task.data.raw import Arrays, DataError
from task.data.request import Reading
from task.data.sources import registry
from task.data.sources.base import Order, read_split
from task.data.sources.registry import load, names, open_source
from task.data.splits import TRAIN
from task.storage.store import Store

DATA = Path(__file__).parents[1] / "docs" / "data.md"
Write = Callable[[Path], Path]
CSV = "text,label\ngood,a\nbad,b\n"


def images(*places: str) -> Write:
    def write(place: Path) -> Path:
        for number, name in enumerate(places):
            path = place / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.full((8, 8), 20 * number, np.uint8)))
        return place / "mine"

    return write


def npz(*names: str) -> Write:
    def write(place: Path) -> Path:
        (place / "mine").mkdir(exist_ok=True)
        for name in names:
            np.savez(place / "mine" / name, images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2)
        return place / "mine"

    return write


def saved(place: Path) -> Path:
    datasets.Dataset.from_dict({"text": ["good", "bad"], "label": ["a", "b"]}).save_to_disk(place / "mine")
    return place / "mine"


def table(name: str) -> Write:
    def write(place: Path) -> Path:
        return write_table(place / name, {"text": ["good", "bad"], "label": ["a", "b"]})

    return write


def excel(place: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (("text", "label"), ("good", "a"), ("bad", "b")):
        book.active.append(row)
    book.save(place / "rows.xlsx")
    return place / "rows.xlsx"


def all_of(*writes: Write) -> Write:
    """What several leave in one folder."""

    def write(place: Path) -> Path:
        return [one(place) for one in writes][-1]

    return write


CARD = file("mine/README.md", "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n---\n")
TABLE = folder(file("train.csv", CSV))
PICTURES = images("cat/1.png", "dog/2.png")
EXAMPLES: dict[str, Write] = {  # data of every source
    "delimited": file("rows.csv", CSV),
    "excel": excel,
    "hub": all_of(TABLE, CARD, TABLE),
    "image-folder": PICTURES,
    "json": table("rows.jsonl"),
    "npz": npz("rows.npz"),
    "parquet": table("rows.parquet"),
    "saved": saved,
    "split-files": TABLE,
}


# ------------------------------------------------------------------------------- who opens what
FOLDERS: dict[str, tuple[Write, str]] = {  # folders that several sources could open, and who does
    "saved before a card": (all_of(saved, CARD, saved), "saved"),
    "a card before files by split": (all_of(TABLE, CARD, TABLE), "hub"),
    "files by split before one file of arrays": (all_of(TABLE, npz("a.npz")), "split-files"),
    "files by split before images": (all_of(TABLE, PICTURES), "split-files"),
    "files of any name before images": (all_of(folder(file("rows.csv", CSV)), PICTURES), "split-files"),
    "one file of arrays before images": (all_of(PICTURES, npz("a.npz")), "npz"),
    "two files of arrays are none": (npz("a.npz", "b.npz"), "hub"),
    "a table of images is no split": (all_of(folder(file("metadata.csv", "file_name\n")), PICTURES), "image-folder"),
    "notes are no rows": (all_of(folder(file("LICENSE.txt", "x")), PICTURES), "image-folder"),
    "nothing that a source knows": (folder(file("notes.md", "x")), "hub"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_sources_are_asked_about_a_folder_in_their_order(case: str, tmp_path: Path) -> None:
    write, kind = FOLDERS[case]
    assert type(open_source(str(write(tmp_path)))) is load(kind)


def test_a_subset_is_a_folder_for_sources_that_know_no_subsets(tmp_path: Path) -> None:
    all_of(folder(file("train.csv", CSV), file("scans/cat/1.png", png(np.zeros((8, 8), np.uint8)))))(tmp_path)
    assert type(open_source(str(tmp_path / "mine"))) is load("split-files")
    assert type(open_source(str(tmp_path / "mine"), "scans")) is load("image-folder")
    CARD(tmp_path)
    assert type(open_source(str(tmp_path / "mine"), "scans")) is load("hub")


def test_a_keyword_goes_before_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file("digits", "x")(tmp_path)
    assert type(open_source("digits")) is load("digits")
    assert type(open_source("somebody/texts")) is load("hub")


def test_every_kind_of_file_is_on_the_page_of_data() -> None:
    page = DATA.read_text(encoding="utf-8")
    assert [suffix for suffix in registry.suffixes() if f"`{suffix}`" not in page] == []
    assert set(registry.suffixes()).isdisjoint(registry.INSTEAD)


# ------------------------------------------------------------------------------- what every source does
def obeys(kind: str, path: Path, rows: int, split: str = TRAIN) -> None:
    """Assert what holds for every source of which `split` of the data at `path` has so many rows."""
    source, again = open_source(str(path)), open_source(str(path))
    assert type(source) is load(kind)
    assert str(path) in source.name
    assert json.loads(json.dumps(source.stamp())) == json.loads(json.dumps(again.stamp()))
    assert split in source.splits()
    raw = read_split(source, split, Reading())
    assert len(raw) == rows
    assert f"row {rows - 1}" in raw.where(rows - 1)
    with pytest.raises(DataError, match=r"has no split 'gone', only '"):
        read_split(source, "gone", Reading())
    if not isinstance(raw, Arrays):
        column = raw.names[0]
        if kind != "image-folder":  # its columns are names of files and folders
            assert read_split(source, split, Reading((column,))).dataset.column_names == [column]
        with pytest.raises(DataError, match=rf"has no column '{column}x', only .*did you mean '{column}'"):
            read_split(source, split, Reading((f"{column}x",), {f"{column}x": ""}))
    assert source.stamp() == again.stamp()
    everything = path.parent / "moved"
    shutil.move(path, everything)
    with pytest.raises(DataError):
        read_split(open_source(str(path)), split, Reading())


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_source_is_read_by_the_same_laws(kind: str, tmp_path: Path) -> None:
    path = EXAMPLES[kind](tmp_path)
    obeys(kind, path, 4 if kind == "npz" else 2)


def test_the_examples_are_of_sources_that_there_are() -> None:
    assert {*EXAMPLES, "digits"} <= set(names())


# ------------------------------------------------------------------------------- a contributor's
@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Sources of one name are not the same in every test."""
    yield
    registry._claims_of.cache_clear()


def sqlite(path: Path, **tables: dict[str, list[object]]) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        for name, columns in tables.items():
            connection.execute(f"create table {name} ({', '.join(columns)})")
            rows = zip(*columns.values(), strict=True)
            connection.executemany(f"insert into {name} values ({', '.join('?' * len(columns))})", rows)
    return path


def test_a_source_is_one_file(store: Store, tmp_path: Path, words: Path) -> None:
    """The one that CONTRIBUTING.md shows."""
    name, text = example(registry.PACKAGE)
    columns = text_columns()
    one = sqlite(tmp_path / "rows.sqlite", reviews=columns)
    two = sqlite(tmp_path / "rows.db", train=columns, test={key: values[:4] for key, values in columns.items()})
    with pytest.raises(DataError, match=r"rows\.sqlite is not one of the supported kinds of file"):
        open_source(str(one))
    with added(registry.PACKAGE, {name: text}, tmp_path / "more"):
        parts = prepared.prepare(config("text", name=str(one), **cut()), words, store)
        assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [6, 3, 3]
        whole = prepared.prepare(config("text", name=str(two), validation_fraction=0.25), words, store)
        assert [len(part) for part in (whole.train, whole.validation, whole.test)] == [9, 3, 4]
        assert whole.labels == ("bad", "good")
        (tmp_path / "bad.db").write_text("text,label\n")
        with pytest.raises(DataError, match=r"bad\.db cannot be read: file is not a database") as error:
            read_split(open_source(str(tmp_path / "bad.db")), TRAIN, reading_of(config("text", name="given")))
        assert error.value.public == "an SQLite file cannot be read"
        obeys(name, one, len(columns["text"]))


CLAIMING = """
from dataclasses import dataclass
from task.data.sources.base import Order, Source
@dataclass(frozen=True)
class Second(Source):
    {claim}
    @classmethod
    def knows(cls, folder):
        return True
    @classmethod
    def open(cls, place):
        return cls()
    name = "second"
    def stamp(self):
        return 0
    def splits(self):
        return ()
    def load(self, split, reading):
        raise NotImplementedError
"""


@pytest.mark.parametrize(
    ("claim", "what", "first"),
    [
        ('suffixes = (".csv",)', r"\.csv", r"delimited \(Delimited\)"),
        ('keywords = ("digits",)', "digits", r"digits \(Digits\)"),
        ("fallback = True", "what no source knows", r"hub \(Hub\)"),
        ("order = Order.CONTENTS", "the folder .*mine", r"image_folder \(ImageFolder\)"),
    ],
)
def test_two_sources_that_claim_the_same_are_named(claim: str, what: str, first: str, tmp_path: Path) -> None:
    path = PICTURES(tmp_path)
    with (
        added(registry.PACKAGE, {"second": CLAIMING.format(claim=claim)}, tmp_path / "more"),
        pytest.raises(
            DataError, match=rf"recognise the same data, {what}: .*{first} and .*\.second \(Second\); change"
        ),
    ):
        open_source(str(path))


@pytest.mark.parametrize("order", [order for order in Order if order < Order.CONTENTS])
def test_a_source_of_another_order_is_no_conflict(order: Order, tmp_path: Path) -> None:
    path = PICTURES(tmp_path)
    with added(registry.PACKAGE, {"second": CLAIMING.format(claim=f"order = Order.{order.name}")}, tmp_path / "more"):
        assert open_source(str(path)).name == "second"

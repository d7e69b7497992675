# ruff: noqa: E501 - sentences as they are
"""Files that nodes bring: a site with an empty note takes part, a server may have no data, what is cut is said."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from deployed_node import SECRET, context, refusal
from flwr.app import ConfigRecord
from in_process import InProcessGrid, federate
from samples import TEXTS, config, cut, language_base, text_columns, write_table
from test_causal import ROWS
from test_causal import config as causal
from tuned import Sample, samples

import client_app
from client_app.public_errors import public_message
from task.config import TaskConfig
from task.data import prepared
from task.data.raw import DataError
from task.data.request import Reading
from task.data.sources.registry import open_source
from task.schema import ConfigError
from task.storage.store import Store
from thistledown.commands.check import check
from thistledown.settings import Settings

APP = Path(__file__).parent.parent
ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Sample:
    return samples(tmp_path_factory.mktemp("server"), words)["bert"]


def without_data(sample: Sample) -> dict[str, Any]:
    """A federation of texts whose server names no data."""
    flat = {key: value for key, value in sample.flat.items() if not key.startswith("data.")}
    return flat | {"data.partitioner": "none", "data.labels": "good|bad", "data.max-length": 16, "tuning": "head",
                   "evaluate": "nodes", "simulation.num-supernodes": 2, "local-steps": 1}  # fmt: skip


# ---------------------------------------------------------------------- a server without data, an empty note
def test_a_site_with_an_empty_note_takes_part(bert: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two deployed nodes with texts of their own, and a server that has none: data.name is not set."""
    rows = [f"{text};{label}" for text, label in TEXTS]
    (tmp_path / "a.csv").write_text("\n".join(["text;label", *rows]))
    (tmp_path / "b.csv").write_text("\n".join(["text;label", *rows, ";good", "  ;bad"]))
    own = {n: {"data-path": str(tmp_path / f"{name}.csv"), "name": name} for n, name in enumerate("ab")}
    with caplog.at_level(logging.WARNING):
        outcome = federate(tmp_path / "out", without_data(bert), InProcessGrid(client_app.app, 2, own, deployed=True))
    assert outcome.summary["status"] == "completed"
    assert {node["node"] for node in outcome.rounds[1]["nodes"]} == {"a", "b"}
    replies = [exchange.reply for exchange in outcome.grid.exchanges if exchange.reply is not None]
    trained = [
        reply["metrics"]["num-examples"] for reply in replies if "train-loss" in reply.metric_records.get("metrics", {})
    ]
    assert trained == [11, 11], "twelve rows each, one of them held out"
    said = f"{tmp_path / 'b.csv'}: 2 of 14 rows have no text in 'text' and are left out (data.skip-empty): rows 12, 13"
    assert [line for line in caplog.messages if "no text" in line] == [said]
    assert [line for line in caplog.messages if "semicolon" in line] == [
        f"{tmp_path / name} is read with a semicolon between cells" for name in ("a.csv", "b.csv")
    ]


WITHOUT = [
    ({}, None),
    (
        {"evaluate": "server"},
        "evaluate = 'server' scores rows of the server, and it has none: name text data by data.name",
    ),
    ({"evaluate": "both"}, "or set evaluate = 'nodes'"),
    ({"data.labels": ""}, "data.labels must name the labels: nodes bring all data"),
    ({"data.partitioner": "iid"}, "data.name = 'digits' are images; name text data"),
    ({"task.kind": "causal-lm", "data.labels": ""}, None),
]


@pytest.mark.parametrize(("changed", "problem"), WITHOUT)
def test_nodes_that_bring_all_data_need_none_on_the_server(changed: dict[str, Any], problem: str | None) -> None:
    flat = {"task.kind": "text-classification", "model.name": "given", "data.partitioner": "none", "evaluate": "nodes",
            "data.labels": "good|bad", **changed}  # fmt: skip
    if problem is None:
        assert TaskConfig.read(flat).data.partitioner.own_rows
        return
    with pytest.raises(ConfigError) as error:
        TaskConfig.read(flat)
    assert len(error.value.problems) == 1
    assert problem in error.value.problems[0]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("data.delimiter", ";;", "data.delimiter = ';;' must be one character, such as ';', or 'tab'"),
        ("data.delimiter", '"', "must be one character"),
        ("data.encoding", "utf9", "data.encoding = 'utf9' is no known encoding"),
        ("data.encoding", "zip", "is no encoding of files"),
        ("data.encoding", "idna", "is no encoding of files"),
    ],
)
def test_delimiters_and_encodings_are_checked(key: str, value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        TaskConfig.read({key: value})
    assert problem in str(error.value)
    assert TaskConfig.read({"data.delimiter": "tab", "data.encoding": "Latin-1"}).data.delimiter == "tab"


# ---------------------------------------------------------------------- what is cut
def test_texts_that_lose_their_end_are_counted(store: Store, words: Path, tmp_path: Path) -> None:
    file = write_table(tmp_path / "all.csv", text_columns())
    settings = config("text", name=str(file), max_length=5, **cut())
    first, again = (prepared.prepare(settings, words, store) for _ in range(2))
    assert first.notices == again.notices, "rows from the store say so too"
    cut_off = sum(len(text.split()) > 3 for text, _ in TEXTS)
    lines = [
        line for line in first.notices if "texts have more than data.max-length = 5 tokens and lose their end" in line
    ]
    assert sum(int(line.split(": ")[1].split()[0]) for line in lines) == cut_off == 3
    assert prepared.prepare(config("text", name=str(file), max_length=6, **cut()), words, store).notices == ()


def test_completions_that_lose_their_end_are_counted(tmp_path: Path) -> None:
    base, file = language_base(tmp_path / "base"), write_table(tmp_path / "rows.jsonl", ROWS)
    rows = prepared.prepare_file(
        causal(file, max_length=6, max_completion_length=1), base, Store(tmp_path / "s"), file, ()
    )
    assert rows.notices == (
        "train: 24 of 24 completions lose their end and the end token, so the model does not learn to stop there: they have "
        "more than 1 tokens (data.max-completion-length)",
        "train: 24 of 24 prompts lose their beginning: with their completions they have more than data.max-length = 6 tokens",
    )
    assert prepared.prepare_file(causal(file), base, Store(tmp_path / "s"), file, ()).notices == ()


def test_alpaca_loses_most_ends_of_its_completions(tmp_path: Path) -> None:
    """The public case: 128 tokens a row, and a small vocabulary."""
    alpaca, base = ASSETS / "alpaca", ASSETS / "stories260k-llama"
    if not (alpaca.exists() and base.exists()):
        pytest.skip("../shared/assets/alpaca and stories260k-llama are not here")
    flat = {"task.kind": "causal-lm", "model.name": str(base), "data.name": str(alpaca), "data.partitioner": "iid"}
    flat |= {"data.train-rows": 500, "data.validation-rows": 20, "data.test-split": ""}
    parts = prepared.prepare(TaskConfig.read(flat), base, Store(tmp_path))
    [line] = [one for one in parts.notices if one.startswith("train: ") and "completions lose" in one]
    assert 250 < int(line.split()[1]) < 400
    assert (parts.train.inputs.tokens.lengths <= 128).all()


# ---------------------------------------------------------------------- nothing of a cell leaves
LEAKS = {
    "one byte of latin-1": ("rows.csv", f"text,label\n{SECRET},x\ncaf\xe9 {SECRET}\x81,y\n".encode("latin-1")),
    "a column of numbers": ("rows.csv", b"text,label\n18151815,x\n18151816,y\n"),
    "a bare comma": ("rows.csv", f"text,label\na,x\n{SECRET},{SECRET},y\n".encode()),
    "a quote": ("rows.csv", f'text,label\na,x\n"{SECRET},y\n'.encode()),
    "a header of values": ("rows.csv", f"{SECRET},x\n{SECRET},y\n".encode()),
    "a class that is not among the labels": ("rows.jsonl", json.dumps({"text": "a", "label": SECRET}).encode()),
    "several lists": ("rows.json", json.dumps({SECRET: [{"text": "a"}], "b": [{"text": "b"}]}).encode()),
    "a mixture": ("rows.json", json.dumps([{"text": SECRET, "label": "x"}, {"text": 1815, "label": "y"}]).encode()),
    "gz that is none": ("rows.csv.gz", SECRET.encode()),
    "no workbook": ("rows.xlsx", SECRET.encode()),
    "no feather": ("rows.feather", SECRET.encode()),
}


@pytest.mark.parametrize("case", LEAKS)
def test_errors_of_files_tell_no_cell(case: str, tmp_path: Path) -> None:
    name, content = LEAKS[case]
    path = tmp_path / name
    path.write_bytes(content)
    flat = {"task.kind": "text-classification", "model.name": "given", "data.name": "texts", "data.labels": "x|y",
            "data.partitioner": "none", "evaluate": "nodes"}  # fmt: skip
    node = context(data_path=str(path), store_path=str(tmp_path / "store"))
    if case == "a class that is not among the labels":  # which is answered: they do not fit
        return
    said = refusal("query.profile", {"instructions": ConfigRecord(flat)}, node)
    assert not [part for part in (SECRET, "1815", "Lovelace", str(tmp_path), "rows.") if part in said]
    assert not re.search(r"(line|row) \d", said)


@pytest.mark.parametrize("kind", ["missing", "pipe", "long"])
def test_a_path_that_is_no_file_is_not_revealed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300 if kind == "long" else "patients.csv")
    if kind == "pipe":
        os.mkfifo(path)
    flat = {"task.kind": "text-classification", "model.name": "given", "data.name": "texts", "data.labels": "x|y"}
    node = context(data_path=str(path), store_path=str(tmp_path / "store"))
    assert refusal("query.profile", {"instructions": ConfigRecord(flat)}, node) == "the node's own data cannot be read"


def test_a_column_of_numbers_is_refused_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n18151815,x\n18151816,y\n")
    with pytest.raises(DataError, match=r"rows\.csv, row 0 \(line 2\), column 'text': no text, but 18151815") as error:
        prepared.index_file(config("text", name="given"), Store(tmp_path / "s"), path)
    assert public_message(error.value) == "column 'text': no text"
    path.write_text("text,label\nfine,x\n" + "dull,y\n" * 3 + '"bad \x00 "one,y\n')
    with pytest.raises(DataError, match=r"rows\.csv, line 6: quotes do not end where a cell does"):
        open_source(str(path)).load("train", Reading(("text", "label"), {"text": "", "label": ""}))


def test_check_says_what_was_detected(bert: Sample, tmp_path: Path) -> None:
    rows = [f"{text};{label}" for text, label in TEXTS * 2]
    (tmp_path / "rows.csv").write_text("\n".join(["text;label", *rows, ";good", "caf\xe9;bad"]), encoding="latin-1")
    flat = {**bert.flat, "data.name": str(tmp_path / "rows.csv"), "data.max-length": 5, "tuning": "head"}
    flat = {key: value for key, value in flat.items() if key != "data.labels"} | {"simulation.num-supernodes": 2}
    overrides = [f"{key}={value!r}".replace("True", "true") for key, value in flat.items()]
    lines: list[str] = []
    for _ in range(2):  # from the store too
        lines.clear()
        check(Settings.read(APP, None, overrides, tmp_path), lines.append)
        said = "\n".join(line for line in lines if line.startswith("notice    "))
        assert f"{tmp_path / 'rows.csv'}, line 27 is not UTF-8: the file is read as Windows-1252" in said
        assert "rows.csv is read with a semicolon between cells" in said
        assert "1 of 26 rows have no text in 'text' and are left out (data.skip-empty): rows 24" in said
        assert "texts have more than data.max-length = 5 tokens and lose their end" in said

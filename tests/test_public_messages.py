"""What leaves a node with an error, and what is left of secrets: nothing that its rows hold, and no token."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from deployed_node import SECRET, asked, context, refusal, settings
from flwr.app import ConfigRecord, Message
from in_process import InProcessGrid, federate
from samples import language_base, png, vision_base, write_table

import client_app
from client_app.public_errors import HIDDEN, NodeError, NodeFailed, public_message
from task.config import TaskConfig
from task.data.encoding.images import ImageEncoder
from task.data.encoding.texts import read_texts
from task.data.prepared import prepare_file
from task.data.raw import DataError, Table
from task.data.request import Reading
from task.data.sources.registry import open_source
from task.kinds import registry as kinds
from task.schema import ConfigError
from task.storage.store import Store


def texts(path: object) -> ConfigRecord:
    return settings(task__kind="text-classification", model__name="given", data__name=str(path), data__test_split="")


# ---------------------------------------------------------------------- what errors tell


def test_no_value_of_a_row_leaves_a_deployed_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The real app over the real wire: its node knows why and where, the server what kind of thing it is."""
    path = write_table(tmp_path / "patients.csv", {"image": ["a.png"] * 3, "label": ["0", SECRET, "1"]})
    own = {n: {"data-path": str(path), "name": f"site {n}"} for n in range(2)}
    grid = InProcessGrid(client_app.app, 2, own, deployed=True)
    with pytest.raises(RuntimeError, match="its labels are not among the run's") as failed:
        federate(tmp_path, {"data.partitioner": "none", "data.labels": "0|1|2|3|4|5|6|7|8|9"}, grid)
    left = "".join(file.read_text() for file in tmp_path.rglob("*") if file.suffix in (".json", ".jsonl", ".toml"))
    for text in (str(failed.value), left):
        assert SECRET not in text
        assert "patients" not in text
    assert (
        f"{path}, row 1 (line 3), column 'label'" in caplog.text
    )  # which is the node's log and the server's in one here


def test_the_node_keeps_the_whole_story(tmp_path: Path) -> None:
    path = write_table(tmp_path / "patients.csv", {"text": ["a", "b"], SECRET: ["x", "y"]})
    record = texts("other")
    record["data.labels"] = "x|y"
    with pytest.raises(NodeFailed) as failed:
        asked(
            "query.profile", {"instructions": record}, context(data_path=str(path), store_path=str(tmp_path / "store"))
        )
    assert f"{path} has no column 'label', only 'text', '{SECRET}'" in str(failed.value.__cause__)
    assert SECRET not in str(failed.value)


BAD: dict[str, tuple[str, Any]] = {
    "csv": ("rows.csv", f"text,label\n{SECRET},a\n{SECRET},b,c\n"),
    "json": ("rows.json", f'[{{"{SECRET}": "{SECRET}"'),
    "jsonl": ("rows.jsonl", f'{{"text": "{SECRET}"}}\n{{"text": {SECRET}}}\n'),
    "no object": ("rows.jsonl", f'{{"text": "a"}}\n["{SECRET}"]\n'),
    "odd value": ("rows.jsonl", f'{{"text": 1, "label": 1}}\n{{"text": "{SECRET}", "label": 2}}\n'),
    "no column": ("rows.csv", f"{SECRET},label\na,b\nc,d\n"),
    "no rows": ("rows.csv", "text,label\n"),
    "not npz": ("rows.npz", SECRET),
    "not parquet": ("rows.parquet", SECRET),
    "unknown kind": (f"{SECRET}.xyz", "a"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_of_data_quote_nothing_in_public(case: str, tmp_path: Path) -> None:
    name, content = BAD[case]
    path = tmp_path / name
    path.write_text(content)
    record = texts("other")
    record["data.labels"] = "x|y"
    node = context(data_path=str(path), store_path=str(tmp_path / "store"))
    said = refusal("query.profile", {"instructions": record}, node)
    assert SECRET not in said
    assert str(tmp_path) not in said
    assert said


SAID = {"role": "user", "content": SECRET}
MALFORMED: dict[str, list[dict[str, Any]]] = {  # cells that a row of the kind cannot have
    "text-classification": [{"text": [SECRET]}, {"label": SECRET}, {"label": [SECRET]}],
    "multi-label": [{"text": [SECRET]}, {"label": [SECRET]}, {"label": {SECRET: SECRET}}],
    "regression": [{"text": [SECRET]}, {"label": SECRET}, {"label": [SECRET]}],
    "token-classification": [{"text": SECRET}, {"text": ["a", "b"]}, {"label": [SECRET]}, {"label": SECRET}],
    "causal-lm": [{"prompt": [SAID]}, {"completion": [SECRET]}, {"completion": {SECRET: SECRET}}],
    "seq2seq-lm": [{"prompt": [SECRET]}, {"completion": [SECRET]}, {"prompt": {SECRET: SECRET}}],
    "preference": [
        {"chosen": [SAID]}, {"rejected": [SECRET]}, {"prompt": [SAID]},
        {"prompt": [SAID], "chosen": [SAID], "rejected": [SAID]},
        {"prompt": [SAID], "chosen": [{"role": SECRET, "content": "a"}], "rejected": [SAID]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted({*kinds.names()} - {"image-classification"}))
def test_a_malformed_row_of_any_kind_is_quoted_on_the_node_alone(kind: str, tmp_path: Path) -> None:
    base, own = language_base(tmp_path / "base"), kinds.load(kind)
    flat: dict[str, Any] = {"task.kind": kind, "model.name": "given", "data.name": "given", "data.partitioner": "iid"}
    flat |= {"data.max-length": 16, "data.prompt-column": "prompt"}
    flat |= {"data.completion-column": "completion"} if kind in ("causal-lm", "seq2seq-lm") else {}
    labels = ("x", "y") if own.drawn_head and own.name != "regression" else ()
    config = TaskConfig.read(flat)
    (row, *_) = [dict(zip(good, cells, strict=True)) for good in [own.stand_in(replace(config.data, labels=("x", "y")))]
                 for cells in zip(*good.values(), strict=True)]  # fmt: skip
    for number, bad in enumerate(MALFORMED[kind]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row | bad) + "\n")
        with pytest.raises(DataError) as error:
            prepare_file(config, base, Store(tmp_path / f"store-{number}"), path, labels)
        for part in (SECRET, str(tmp_path), "row 0"):
            assert part not in public_message(error.value)


def test_a_label_is_named_by_its_column(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.csv", {"text": ["a", "b"], "label": [1.5, 2.5]})
    record = texts("other")
    record["data.labels"] = "x|y"
    node = context(data_path=str(path), store_path=str(tmp_path / "store"))
    assert (
        refusal("query.profile", {"instructions": record}, node) == "column 'label': a label is a whole number or text"
    )


@pytest.mark.parametrize("row", [0, 5, 11])
def test_a_strange_label_says_neither_what_nor_where_it_is(row: int, tmp_path: Path) -> None:
    """With a number of the row an order could find out, value by value, who has which."""
    labels = ["x", "y"] * 6
    labels[row] = SECRET
    path = write_table(tmp_path / "rows.csv", {"text": ["a"] * 12, "label": labels})
    record = texts("other")
    record["data.labels"] = "x|y"
    node = context(data_path=str(path), store_path=str(tmp_path / "store"))
    profile = asked("query.profile", {"instructions": record}, node).content.config_records["profile"]
    assert profile["labels-fit"] is False
    assert profile["num-examples"] == 0
    assert profile["labels"] == []


def test_bytes_of_a_text_are_not_quoted(tmp_path: Path) -> None:
    """A parquet file may hold its texts as bytes; a csv in no known encoding is refused by its line."""
    rows = [SECRET.encode(), b"b"]
    table = Table("rows.parquet", datasets.Dataset.from_dict({"text": rows}), tmp_path)
    with pytest.raises(DataError) as error:
        read_texts(table, "text", np.arange(2))
    assert SECRET in str(error.value)
    assert public_message(error.value) == "column 'text': no text"
    path = tmp_path / "rows.csv"
    path.write_bytes(f"text,label\na,x\n{SECRET} \x81,y\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"rows\.csv, line 3: the file is not UTF-8, or not all of it; .*data\.encoding"
    ) as error:
        open_source(str(path)).load("train", Reading())
    assert public_message(error.value) == "the file is not UTF-8, or not all of it"


@pytest.mark.parametrize("value", [SECRET, {"path": SECRET, "bytes": None}, b"no image " + SECRET.encode()])
def test_an_image_is_named_by_its_place(value: object, tmp_path: Path) -> None:

    rows = [value, {"path": None, "bytes": png(np.zeros((8, 8), np.uint8))} if isinstance(value, dict) else value]
    table = Table(str(tmp_path / "scans.parquet"), datasets.Dataset.from_dict({"image": rows}), tmp_path)
    encoder = ImageEncoder.of(vision_base(tmp_path / "base"), "image")
    with pytest.raises(DataError) as error:
        encoder.write(tmp_path, "train", table, np.arange(2))
    assert error.value.public.startswith("column 'image': ")
    assert "scans.parquet, row 0, column 'image': " in str(error.value)
    assert SECRET not in error.value.public
    assert str(tmp_path) not in error.value.public


def test_an_error_of_another_hand_is_named_and_no_more() -> None:
    assert public_message(KeyError(SECRET)) == f"KeyError: {HIDDEN}"
    assert public_message(DataError(SECRET)) != SECRET
    assert SECRET not in public_message(DataError(SECRET))
    assert public_message(NodeError("rank")) == "rank"
    assert "lr" in public_message(ConfigError(["lr"]))


def test_a_simulated_node_tells_everything(tmp_path: Path) -> None:
    def raises(reply: Message) -> Message:
        raise KeyError(SECRET)

    with pytest.raises(RuntimeError, match=SECRET):
        federate(tmp_path, {"tuning": "head"}, spoil=lambda partition, kind, reply: raises(reply))


# ---------------------------------------------------------------------- secrets


@pytest.mark.parametrize("deployed", [False, True])
def test_a_token_of_the_environment_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, deployed: bool
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "FLWR_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    caplog.set_level("DEBUG")
    outcome = federate(tmp_path, {"tuning": "head"}, deployed=deployed)
    files = [path for path in outcome.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in caplog.text
    for exchange in outcome.grid.exchanges:
        assert exchange.reply is not None
        assert SECRET not in str(exchange.request) + str(exchange.reply)

"""`thistledown new`: what it takes data for, what it says of it, and a preset that is valid as it stands."""

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import language_base, write_table

from thistledown.main import DONE, WRONG, main
from thistledown.settings import Settings

LINES = [f"the patient of visit {number} says this and that" for number in range(40)]
TURNS = [{"role": "user", "content": "Which is the largest?"}, {"role": "assistant", "content": "Jupiter."}]
SHAREGPT = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "That."}]
AB = ["a", "b"] * 20
Files = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notes(path: Path) -> None:
    """A csv with all that is odd: an empty text, one that is there twice with two labels, a label with two rows, an
    empty column, a site without a name."""
    rows = [
        [
            f"N{n}",
            LINES[n % 40] + "." * (n // 40),
            "billing" if n % 2 else "delivery",
            "north" if n % 3 else "south",
            "",
        ]
        for n in range(80)
    ]
    rows[4][1], rows[5][1] = "", rows[6][1]
    rows[7][2] = rows[8][2] = "other"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "note", "category", "clinic", "region"], *rows])


def preset(path: Path) -> dict[str, Any]:
    """Return the keys of a preset, after `run` would have accepted them."""
    assert Settings.read(None, str(path), [], path.parent).idle == ()
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_a_csv_of_notes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes(place / "notes.csv")
    assert main(["new", "notes.csv"]) == DONE
    said = capsys.readouterr().out
    for part in (
        "category  texts, 3 different: delivery (39), billing (39), other (2)",
        "odd: nothing is in 'region'",
        "odd: the label 'other' has 2 rows",
        "odd: in 'note' are 1 repetitions",
        "odd: rows with the same 'note' have different labels, for 1 values of it",
        "1 of 80 rows have no text in 'note'",
        'data.id-column = "clinic": the sites of rows, 2 of them',
        "next: thistledown check notes.toml, thistledown run notes.toml",
    ):
        assert part in said, said
    written = preset(place / "notes.toml")
    assert written["task"] == {"kind": "text-classification"}
    assert written["data"]["name"] == "notes.csv"
    assert written["data"]["text-column"] == "note"
    assert written["data"]["labels"] == "billing|delivery|other"
    assert written["data"]["partitioner"] == "natural"
    assert written["data"]["test-split"] == ""
    assert written["simulation"] == {"num-supernodes": 2}
    lines = (place / "notes.toml").read_text().splitlines()
    assert lines[:2] == ["# thistledown run notes.toml", "#"]
    keys = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert all(lines[number - 1].startswith("# ") for number in keys)  # each key has a comment


KINDS: dict[str, tuple[dict[str, list[Any]], str, dict[str, str]]] = {
    "conversations": ({"messages": [TURNS] * 40}, "causal-lm", {"messages-column": "messages"}),
    "sharegpt": ({"talk": [SHAREGPT] * 40, "n": AB}, "causal-lm", {"messages-column": "talk"}),
    "pairs": (
        {"prompt": LINES, "completion": LINES},
        "causal-lm",
        {"prompt-column": "prompt", "completion-column": "completion"},
    ),
    "pairs of turns": (
        {"prompt": [TURNS[:1]] * 40, "completion": [TURNS[1:]] * 40},
        "causal-lm",
        {"prompt-column": "prompt", "completion-column": "completion"},
    ),
    "preferences": (
        {"prompt": LINES, "chosen": [TURNS] * 40, "rejected": [TURNS] * 40, "messages": [TURNS] * 40},
        "preference",
        {"chosen-column": "chosen", "rejected-column": "rejected", "prompt-column": ""},
    ),
    "instructions": (
        {"instruction": LINES, "context": LINES, "response": LINES, "category": AB},
        "causal-lm",
        {"instruction-column": "instruction", "input-column": "context", "output-column": "response"},
    ),
    "questions": (
        {"question": LINES, "answer": LINES},
        "causal-lm",
        {"instruction-column": "question", "input-column": "", "output-column": "answer"},
    ),
    "plain": ({"story": LINES}, "causal-lm", {"instruction-column": "", "output-column": "story"}),
    "numbers": ({"text": LINES, "label": [0, 1] * 20}, "text-classification", {"label-column": "label"}),
    "fractions": (
        {"text": LINES, "score": [0.5, 1.25] * 20},
        "regression",
        {"text-column": "text", "label-column": "score"},
    ),
    "classes with fractions": (
        {"text": LINES, "category": AB, "score": [0.5, 1.25] * 20},
        "text-classification",
        {"label-column": "category"},
    ),
    "lists of labels": (
        {"text": LINES, "topics": [["a"], ["a", "b"]] * 20},
        "multi-label",
        {"label-column": "topics", "labels": "a|b"},
    ),
    "words": (
        {"id": LINES, "tokens": [["a", "film"]] * 40, "pos_tags": [["D", "N"]] * 40, "ner_tags": [["O", "B"]] * 40},
        "token-classification",
        {"text-column": "tokens", "label-column": "ner_tags", "labels": "B|O"},
    ),
    "unnamed": ({"x": AB, "z": LINES}, "text-classification", {"text-column": "z", "label-column": "x"}),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_rows_are_taken_for(case: str, place: Path) -> None:
    rows, kind, columns = KINDS[case]
    write_table(place / "rows.jsonl", rows)
    assert main(["new", "rows.jsonl"]) == DONE
    written = preset(place / "rows.toml")
    assert written["task"]["kind"] == kind
    assert {key: written["data"][key] for key in columns} == columns
    assert written["data"]["partitioner"] == "iid"


NAMED: dict[str, tuple[dict[str, list[Any]], list[str], str]] = {
    "multi-label": ({"text": AB, "tags": [["a"], ["a", "b"]] * 20}, ["--label", "tags"], "a|b"),
    "regression": ({"text": AB, "stars": [*range(8)] * 5}, ["--label", "stars"], ""),
    "token-classification": (
        {"words": [["a", "film"]] * 40, "tags": [["O", "B"]] * 40},
        ["--text", "words", "--label", "tags"],
        "B|O",
    ),
    "seq2seq-lm": ({"prompt": LINES, "completion": LINES}, [], ""),
}


@pytest.mark.parametrize("kind", NAMED)
def test_a_kind_that_is_named(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a file whose name is no TOML; what has no classes is not told of classes with few rows."""
    rows, flags, labels = NAMED[kind]
    write_table(place / "odd\aname.jsonl", rows)
    assert main(["new", "odd\aname.jsonl", "--kind", kind, *flags]) == DONE
    assert "the label" not in capsys.readouterr().out
    written = preset(place / "odd\aname.toml")
    assert written["data"]["name"] == "odd\aname.jsonl"
    assert written["data"].get("labels", "") == labels
    assert ("t5" in written["model"]["name"]) == (kind == "seq2seq-lm")


def test_a_folder_of_images_with_a_test_part_that_cannot_be_used(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        folder = place / "scans" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 9), number, np.uint8)).save(folder / f"{number}.png")
    unknown = place / "scans" / "test" / "unknown"
    unknown.mkdir(parents=True)
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(unknown / "x.png")
    assert main(["new", "scans", "--model", "embedded", "--nodes", "3"]) == DONE
    said = capsys.readouterr().out
    assert "images of 9 x 6 pixels" in said
    assert "label  classes, 2 different: a (20), b (20)" in said
    assert "odd: test rows cannot be used: " in said
    written = preset(place / "scans.toml")
    assert written["task"]["kind"] == "image-classification"
    assert written["model"]["name"] == "embedded"
    assert written["data"]["test-split"] == ""
    assert written["simulation"] == {"num-supernodes": 3}


@pytest.mark.slow
def test_every_guess_is_changed_by_a_flag(place: Path) -> None:
    notes(place / "notes.csv")
    base = language_base(place / "llama")
    (place / "presets").mkdir()
    flags = ["--kind", "causal-lm", "--site", "", "--model", str(base), "--nodes", "5", "--to", "presets/own.toml"]
    assert main(["new", "notes.csv", *flags, "-c", "data.output-column='note' learning-rate=0.1"]) == DONE
    written = preset(place / "presets" / "own.toml")
    assert written["learning-rate"] == 0.1
    assert written["data"]["output-column"] == "note"
    assert written["data"]["name"] == str(place / "notes.csv")  # not below the preset
    assert written["data"]["max-length"] <= 64
    assert "id-column" not in written["data"]
    assert (
        main(["new", "notes.csv", "--text", "id", "--label", "clinic", "--force", "--to", "presets/own.toml"]) == DONE
    )
    written = preset(place / "presets" / "own.toml")
    assert (written["data"]["text-column"], written["data"]["label-column"]) == ("id", "clinic")


def test_a_column_of_sites_with_gaps_is_named_and_not_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"text": LINES, "label": AB, "site": ["x", "y"] * 19 + ["", ""]}
    (place / "rows.jsonl").write_text(
        "".join(json.dumps(dict(zip(rows, row))) + "\n" for row in zip(*rows.values(), strict=True))
    )
    assert main(["new", "rows.jsonl"]) == DONE
    assert "odd: 'site' looks like a column of sites, but is empty in 2 rows" in capsys.readouterr().out
    assert preset(place / "rows.toml")["data"]["partitioner"] == "iid"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["notes.csv"], "notes.toml exists; name another file by --to, or write over it by --force"),
        (["notes.csv", "--to", "no/such.toml"], "there is no folder"),
        (["nowhere.csv"], "there is no file or folder"),
        (["notes.csv", "--force", "--label", "categry"], "--label categry: the data has no column 'categry'"),
        (["notes.csv", "--force", "--site", "x"], "--site x: the data has no column 'x'"),
        (["notes.csv", "--force", "--kind", "poetry"], "poetry"),
        (["notes.csv", "--force", "--text", "id", "-c", "data.text-column='id'"], "leave one out"),
        (["notes.csv", "--force", "-c", "learning-rat=1"], "learning-rat"),
        (["notes.csv", "--force", "--kind", "image-classification"], "is sure to mean"),
        (["numbers.csv"], "is nothing that a task kind recognises: its columns are 'a' (numbers)"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes(place / "notes.csv")
    (place / "numbers.csv").write_text("a\n" + "1.5\n2.25\n" * 10)
    (place / "notes.toml").write_text("mine")
    assert main(["new", *arguments]) == WRONG
    assert said in capsys.readouterr().err
    assert (place / "notes.toml").read_text() == "mine"

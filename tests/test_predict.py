"""`thistledown predict`: the answers of a tuned model equal what its evaluation and transformers compute."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from in_process import Outcome, federate
from PIL import Image
from samples import TEXTS, write_table
from tuned import samples

import thistledown
from task.schema import ConfigError
from thistledown.main import DONE, WRONG, main

ROUNDS = {"num-server-rounds": 2, "local-steps": 4, "learning-rate": 0.02}
ODD = ["", "1.50", 'said "no", twice', "späť\nline", "007"]  # cells of a column that the model does not read


@pytest.fixture(scope="module")
def words_run(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Outcome:
    """A run on texts whose test rows are in a file of their own."""
    folder = tmp_path_factory.mktemp("predict")
    bert = samples(folder, words)["bert"]
    rows = write_table(folder / "rows" / "train.csv", *columns(TEXTS * 3))
    write_table(rows.parent / "test.csv", *columns(TEXTS))
    options = bert.flat | ROUNDS | {"data.name": str(rows.parent), "data.test-split": "test", "tuning": "lora"}
    return federate(folder / "run", options)


def columns(texts: Any) -> tuple[Any, ...]:
    return ({"text": [text for text, _ in texts], "label": [label for _, label in texts]},)


def asked(outcome: Outcome, *arguments: str) -> int:
    return main(["predict", str(outcome.folder), *arguments])


def test_the_share_of_right_answers_is_the_accuracy_of_the_run(words_run: Outcome, tmp_path: Path) -> None:
    best = words_run.rounds[words_run.summary["best-round"]]
    test = Path(words_run.task.data.name) / "test.csv"
    assert asked(words_run, "--file", str(test), "--to", str(tmp_path / "answers.csv")) == DONE
    answers = pandas.read_csv(tmp_path / "answers.csv")
    assert list(answers.columns) == ["text", "label", "prediction", "probability"]
    assert float((answers.label == answers.prediction).mean()) == pytest.approx(best["accuracy"])


def test_probabilities_are_those_of_the_pipeline(words_run: Outcome) -> None:
    from transformers import pipeline

    texts = [text for text, _ in TEXTS]
    theirs: Any = pipeline("text-classification", model=str(words_run.folder / "model" / "best"), top_k=None)
    ours = thistledown.Outcome(words_run.folder).predict(texts)
    for one, other in zip(ours, theirs(texts), strict=True):
        assert one.probabilities == pytest.approx({score["label"]: score["score"] for score in other}, abs=1e-6)
        assert one.answer == next(iter(one.probabilities)) == max(one.probabilities, key=one.probabilities.__getitem__)


def test_all_cells_of_a_file_come_back_as_they_were(words_run: Outcome, tmp_path: Path) -> None:
    """An empty row keeps its place and has no answer."""
    source = tmp_path / "rows.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "text"])
        writer.writerows(zip(ODD, [" ", *(text for text, _ in TEXTS[: len(ODD) - 1])], strict=True))
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        assert asked(words_run, "--file", str(source), "--to", str(tmp_path / f"answers{suffix}")) == DONE
    found = pandas.read_csv(tmp_path / "answers.csv", dtype=str, keep_default_na=False)
    assert found.note.tolist() == ODD
    assert found.prediction[0] == ""
    assert set(found.prediction[1:]) <= set(words_run.task.data.labels)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["note"] for line in lines] == ODD
    assert lines[0]["prediction"] is None
    assert pandas.read_parquet(tmp_path / "answers.parquet").note.tolist() == ODD
    assert pandas.read_csv(tmp_path / "answers.tsv", sep="\t", dtype=str, keep_default_na=False).equals(found)


def test_answers_are_printed(words_run: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(words_run, TEXTS[0][0]) == DONE
    first, *others = capsys.readouterr().out.splitlines()
    assert first == TEXTS[0][0]
    assert {line.split("  ")[-1] for line in others} == set(words_run.task.data.labels)


@pytest.mark.slow
def test_an_image_and_an_array_of_one_have_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the current folder."""
    outcome = federate(tmp_path / "run", ROUNDS | {"num-server-rounds": 1})
    monkeypatch.chdir(tmp_path)
    grid = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(grid).save(tmp_path / "one.png")
    write_table(tmp_path / "rows.jsonl", {"image": [grid.tolist()]})
    assert asked(outcome, "--file", "rows.jsonl") == DONE
    [line] = (tmp_path / "rows-predicted.jsonl").read_text().splitlines()
    [answer] = thistledown.Outcome(outcome.folder).predict(["one.png"])
    assert json.loads(line)["prediction"] == answer.answer
    assert sum(answer.probabilities.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name texts or images to ask about, or a file"),
        (["hello", "--file", "rows.csv"], "and not both"),
        (["hello", "--to", "there.csv"], "--to is for --file"),
        (["hello", "-c", "learning-rate=1"], "learning-rate does not change what a tuned model says"),
        ([" "], "there is nothing to ask about in ' '"),
        (["--file", "nowhere.csv"], "nowhere.csv"),
        (["--file", "rows.csv", "--to", "there.txt"], "answers are written as .csv, .tsv, .jsonl, .parquet"),
        (["--file", "rows.csv", "--to", "rows.csv"], "rows.csv exists"),
        (["--file", "rows.csv", "--to", "no/such.csv"], "there is no folder"),
        (["--file", "rows.csv"], "has no column 'text'"),
        (["--file", "rows.csv", "-c", "data.text-column='body'"], "has a column 'prediction' already"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(
    words_run: Outcome,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "rows.csv", {"body": ["a", "b"], "prediction": ["c", "d"]})
    assert asked(words_run, *arguments) == WRONG
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a results folder"):
        thistledown.Outcome(tmp_path).predict(["a"])

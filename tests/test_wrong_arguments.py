"""Every verb with a wrong argument: one sentence on the error stream, exit code 2, and nothing is written."""

import os
from pathlib import Path

import pytest

from thistledown.arguments import parser
from thistledown.main import WRONG, main

# by verb; `file` is text, `bytes.*` are random, `folder` is empty, `damaged` has half a summary
CASES: dict[str, list[list[str]]] = {
    "": [[], ["simulate"], ["--nosuch"]],
    "run": [
        ["nosuch"], ["folder"], ["bytes.toml"], ["-c", "nosuch=1"], ["-c", "a="], ["-c", "seed=x"], ["--app", "folder"],
        ["-c", "resume='folder'"], ["-c", "resume='latest'"], ["-c", "output-dir='file/x'"], ["--nosuch"], ["a", "b"],
    ],
    "compare": [
        [], ["nosuch", "strategy=rbla"], ["folder", "strategy=rbla"], ["results", "strategy=rbla"], ["strategy=rbla"],
        ["strategy=rbla", "strategy=rbla"], ["strategy=nosuch", "strategy=rbla"], ["strategy=", "strategy=rbla"],
        ["strategy=rbla", "strategy=fedavg", "--seeds", "0"], ["strategy=rbla", "strategy=fedavg", "--jobs", "1000"],
        ["strategy=rbla", "strategy=fedavg", "--to", "file/x"], ["strategy=rbla", "data.holdout=0.3"],
        ["evaluate=nodes", "--baselines"], ["strategy=rbla", "strategy=fedavg", "--target", "x"],
        ["strategy=rbla", "strategy=fedavg", "--target", "nan"], ["strategy=rbla", "strategy=rbla seed=5"],
        ["finished", "strategy=rbla"],
    ],
    "check": [
        ["nosuch"], ["--rows", "x"], ["--rows", "-1"], ["-c", "task.kind='poetry'"], ["-c", "data.name='no.csv'"],
    ],
    "new": [
        [], ["no.csv"], ["file"], ["folder"], [""], ["bytes.csv"], ["bytes.parquet"], ["bytes.jsonl"], ["bytes.png"],
        ["digits", "--to", "folder"], ["digits", "--to", "no/where.toml"], ["digits", "--nodes", "0"],
        ["digits", "--nodes", "x"], ["digits", "--kind", "poetry"], ["digits", "-c", "nosuch=1"],
        ["digits", "--site", "clinic"], ["digits", "--kind", "text-classification"],
    ],
    "export": [
        [], ["nowhere"], ["file"], ["folder"], ["results"], ["folder", "--state", "worst"],
        ["folder", "--push", "no/such/name"], ["folder", "--push", ""], ["folder", "--public"],
    ],
    "predict": [
        [], ["nowhere", "hello"], ["file", "hello"], ["results", "hello"], ["folder", "a", "--file", "b"],
        ["folder", "a", "--chat"], ["folder", "--chat", "--file", "b"], ["results", "--chat"],
    ],
    "up": [
        [], ["no.csv"], ["file", "--preset", "nosuch"], ["file", "--app", "folder"], ["file", "-c", "nosuch=1"],
    ],
    "keys": [["zzzzz"], ["rank", "more"]],
    "presets": [["--app", "folder"], ["more"]],
    "certs": [
        [], ["file", "--names", "a"], ["new"], ["new", "--names", "a b"], ["new", "--names", "a", "--days", "0"],
        ["new", "--names", "a", "--nodes", "../x"], ["new", "--days", "x"],
    ],
    "purge": [["--store-path", "nowhere"], ["--older-than", "x"], ["--kind", "zz", "--store-path", "folder"]],
    "status": [["nowhere"], ["file"], ["folder"], ["a", "b"], ["damaged"]],
    "runs": [["nowhere"], ["file"], ["folder"], ["a", "b"], ["damaged"]],
    "completion": [[], ["nosuch"], ["bash", "more"]],
    "watch": [
        ["nowhere"], ["file"], ["folder"], ["a", "b"], ["finished", "--port", "x"], ["finished", "--port", "-1"],
        ["finished", "--port", "70000"],
    ],
    "account": [["nowhere"], ["file"], ["--delta", "2"], ["--delta", "x"]],
    "app": [[], ["nosuch"], ["hash", "nowhere"], ["hash", "folder"]],
    "policy": [[], ["nosuch"], ["check"], ["check", "nowhere"], ["check", "folder"], ["check", "bytes.toml"]],
}  # fmt: skip
TABLE = [[verb, *case] if verb else case for verb, cases in CASES.items() for case in cases]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "summary.json").write_text('{"status": "completed"}')
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "summary.json").write_text("{}")
    (tmp_path / "file").write_text("a text")
    for name in ("bytes.toml", "bytes.csv", "bytes.parquet", "bytes.jsonl", "bytes.png", "results/config.toml"):
        (tmp_path / name).write_bytes(bytes(range(255, 0, -1)) * 2)
    return tmp_path


def test_the_table_has_every_verb() -> None:
    [commands] = [action for action in parser()._actions if action.dest == "command"]
    assert set(commands.choices or ()) == CASES.keys() - {""}


@pytest.mark.parametrize("arguments", TABLE, ids=" ".join)
def test_a_wrong_argument_is_one_sentence(
    arguments: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.walk(place))
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse
        code = end.code
    said = capsys.readouterr()
    assert code == WRONG, said
    [sentence] = said.err.splitlines()
    assert len(sentence.split()) > 4
    assert "Errno" not in sentence
    assert "Traceback" not in said.out
    assert sorted(os.walk(place)) == before

"""What `thistledown up` makes of files and settings, before anything starts; tests/deployment/test_up.py starts it."""

import json
from pathlib import Path

import pytest

from task.schema import ConfigError
from thistledown.commands.up import named, settings_for


def written(path: Path, labels: list[object]) -> Path:
    rows = [json.dumps({"image": [[number % 16] * 8] * 8, "label": label}) for number, label in enumerate(labels)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_nodes_have_the_names_of_their_files(tmp_path: Path) -> None:
    files = [written(tmp_path / "clinic-1.jsonl", [1]), tmp_path / "clinic-2"]
    files[1].mkdir()
    assert named(files) == {"clinic-1": files[0], "clinic-2": files[1]}


def test_every_problem_with_files_is_said(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    there = [written(tmp_path / "a.jsonl", [1]), written(tmp_path / "other" / "a.jsonl", [1])]
    odd = written(tmp_path / "my notes.jsonl", [1])
    with pytest.raises(ConfigError) as error:
        named([*there, odd, tmp_path / "none.csv"])
    assert error.value.problems == [
        f"there is no file or folder {tmp_path / 'none.csv'}",
        f"{odd}: a node's name has letters, digits, '.', '-' and '_'; rename the file",
        "2 files are called 'a', and so would be their nodes; rename them",
    ]


def test_labels_are_those_of_all_files_in_order(tmp_path: Path) -> None:
    nodes = named([written(tmp_path / "a.jsonl", [10, 2] * 10), written(tmp_path / "b.jsonl", [9, 2] * 10)])
    read = settings_for(nodes, None, None, []).config
    assert read.task.data.labels == ("2", "9", "10")
    assert (read.task.evaluate, read.task.data.partitioner.name, read.server.min_available_nodes) == (
        "nodes",
        "none",
        2,
    )
    assert settings_for(nodes, None, None, ["data.labels='10|9|2|x'"]).config.task.data.labels == ("10", "9", "2", "x")


def test_a_bad_cell_is_said_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"image": [[1, 2], [3, 4]]}\n')
    with pytest.raises(ConfigError, match="label"):
        settings_for(named([file]), None, None, [])

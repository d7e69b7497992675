"""`thistledown keys` and `thistledown presets`: what can be chosen, without looking into files."""

import subprocess
import sys
from pathlib import Path

import pytest

from server_app.config import keys as all_keys
from task.foreign_names import FOREIGN
from task.schema import ConfigError
from thistledown.commands.keys import keys
from thistledown.commands.presets import presets
from thistledown.settings import app_folder

COMMAND = str(Path(sys.executable).parent / "thistledown")


def named(lines: list[str]) -> list[str]:
    return [line.partition(" = ")[0] for line in lines if not line.startswith(" ")]


def test_without_a_word_all_keys_are_shown_with_default_and_meaning() -> None:
    lines = list(keys(""))
    assert named(lines) == list(all_keys())
    assert "batch-size = 16" in lines
    said = " ".join(line.strip() for line in lines)
    assert all(" ".join(option.doc.split()) in said for option in all_keys().values())


@pytest.mark.parametrize(("word", "key"), [("head_rate", "head-rate"), ("Dirichlet", "data.alpha"), ("seed", "seed")])
def test_a_word_finds_keys_by_name_and_meaning(word: str, key: str) -> None:
    found = named(list(keys(word)))
    assert key in found
    assert len(found) < len(all_keys()) / 4


@pytest.mark.parametrize("word", FOREIGN)
def test_the_name_of_another_tool_finds_ours(word: str) -> None:
    assert FOREIGN[word] in named(list(keys(word)))


def test_a_word_that_nothing_has_is_answered_with_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match=r"no key has 'lerning-rate'.*did you mean 'learning-rate'"):
        list(keys("lerning-rate"))


def test_every_preset_is_shown_with_its_comment() -> None:
    lines, folder = list(presets(app_folder(None))), app_folder(None) / "presets"
    assert named(lines)[:-1] == sorted(path.stem for path in folder.glob("*.toml"))
    assert any("Nodes of different strength: they train LoRA adapters of rank 2, 4 and 8" in line for line in lines)


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{COMMAND} keys | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (141, "strategy = 'fedavg'\n", "")

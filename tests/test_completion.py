"""`thistledown completion`: bash completes commands, options, presets and files."""

import argparse
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from thistledown.arguments import parser
from thistledown.commands.completion import completion


def commands() -> Mapping[str, argparse.ArgumentParser]:
    [found] = [action.choices for action in parser()._actions if action.dest == "command"]
    assert isinstance(found, Mapping)
    return found


def completed(line: str, folder: Path) -> set[str]:
    """What bash offers behind these words."""
    words = line.split(" ")
    script = completion("bash", commands(), ["noniid", "quickstart"])
    asked = f'{script}\nCOMP_WORDS=({" ".join(words)} ""); COMP_CWORD={len(words) - 1}; _thistledown; '
    asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").touch()
    assert completed("thistledown ex", tmp_path) == {"export"}
    assert completed("thistledown export --m", tmp_path) == {"--merge"}
    assert completed("thistledown run n", tmp_path) == {"noniid", "notes.csv"}
    assert completed("thistledown new n", tmp_path) == {"notes.csv"}
    assert completed("thistledown policy c", tmp_path) == {"check"}
    assert completed("thistledown app --", tmp_path) == {"--help"}
    assert set(commands().keys()) <= completed("thistledown ''", tmp_path)


def test_zsh_reads_the_script_as_bash_does() -> None:
    first, *rest = completion("zsh", commands(), []).splitlines()
    assert "bashcompinit" in first
    assert "\n".join(rest) == completion("bash", commands(), [])

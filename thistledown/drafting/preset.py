"""A preset as a TOML file in which every key has its reason above it."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import tomli_w

WIDTH = 118
FLAGS = {  # of `thistledown new`, beside -c
    "task.kind": "--kind",
    "data.text-column": "--text",
    "data.label-column": "--label",
    "data.id-column": "--site",
    "model.name": "--model",
    "simulation.num-supernodes": "--nodes",
}

FIRST = ("", "task", "model", "data")  # tables of a preset; keys without one have to come first


@dataclass(frozen=True)
class Choice:
    """A key with its value, and why. `guessed`: it follows from the data, and another value may be right."""

    key: str
    value: object
    why: str
    guessed: bool = False

    def line(self) -> str:
        """Return it as a line of `thistledown new`, with the flag that changes it."""
        flag = FLAGS.get(self.key, f'-c "{self.key}=..."')
        return f"  {self.key} = {_toml(self.value)}: {self.why} ({flag})"


def written(title: str, choices: Sequence[Choice]) -> str:
    """Return the text of a preset: the title, then the keys, each below its reason; keys of one table together."""
    lines = [*map(_comment, title.splitlines()), ""]
    tables = list(dict.fromkeys([*FIRST, *(_table(choice) for choice in choices)]))
    ordered = sorted(choices, key=lambda choice: tables.index(_table(choice)))
    for table, own in groupby(ordered, key=_table):
        lines += ["", f"[{table}]"] if table else []
        for choice in own:
            lines += map(_comment, textwrap.wrap(choice.why, WIDTH, break_on_hyphens=False))
            lines.append(f"{choice.key.rpartition('.')[2]} = {_toml(choice.value)}")
    return "\n".join(lines) + "\n"


def _comment(line: str) -> str:
    """Return a comment. What cannot be printed, as in the name of a file, is no TOML."""
    return f"# {''.join(letter if letter.isprintable() else '?' for letter in line)}".rstrip()


def _table(choice: Choice) -> str:
    return choice.key.rpartition(".")[0]


def _toml(value: object) -> str:
    return tomli_w.dumps({"value": value}).partition(" = ")[2].rstrip("\n")

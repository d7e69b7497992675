"""Arguments that several commands have."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Say = Callable[[str], None]  # prints a line
Do = Callable[[argparse.Namespace, Say], bool]  # does what a command says, and returns whether it succeeded

KEYS = "run-config keys, as for `flwr run`: \"num-server-rounds=3 strategy='rbla'\""


def add_overrides(command: argparse.ArgumentParser, help: str = KEYS) -> None:
    """Add -c, which may be repeated."""
    command.add_argument(
        "-c", dest="overrides", metavar="'key=value ...'", action="append", default=[], help=f"{help}; may be repeated"
    )


def add_app(command: argparse.ArgumentParser) -> None:
    """Add --app."""
    command.add_argument(
        "--app", type=Path, metavar="DIR", help="clone of thistledown to run; default: the installed one"
    )


def add_results(command: argparse.ArgumentParser) -> None:
    """Add the results folder of a run, and which of its states is meant."""
    command.add_argument("results", type=Path, help="a results folder, such as outputs/latest")
    command.add_argument("--state", choices=("best", "last"), default="best", help="which round (default: best)")


def listed(text: str) -> list[str]:
    """Return the parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def count(text: str) -> int:
    """Return a number of rows."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)


def finite(text: str) -> float:
    """Return a number that is neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value

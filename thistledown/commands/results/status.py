"""`thistledown status`: the status of runs, and how to resume those that were interrupted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from server_app.results.endings import COMPLETED, SUMMARY, hint, interrupt, summary_of
from server_app.results.report import RUNNING
from task.schema import ConfigError

TEXTS = ("status", "strategy", "tuning", "metric")  # what a summary must have
NUMBERS = ("rounds", "bytes_up", "bytes_down", "bytes_base", "seconds")
SCORES = ("base", "best", "final")  # numbers, or null where nothing was measured


def status(folder: Path) -> Iterator[str]:
    """Yield the status of one run, or of all runs in a folder of outputs.

    Raises ConfigError for a folder without results, and after the last run for summaries that cannot be read.
    """
    found, problems = summaries(folder)
    for run, summary in found.items():
        yield from _lines(run, summary)
    refuse(problems)


def summaries(folder: Path) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """Return the summaries of all runs in a folder of outputs, or of the one whose results folder it is, by their
    folders, and what is wrong with those that cannot be read.

    A run with status running whose folder no process locks was interrupted, and is marked so in its folder.
    Raises ConfigError for a folder without results.
    """
    runs = [folder] if (folder / SUMMARY).exists() else sorted(path.parent for path in folder.glob(f"*/{SUMMARY}"))
    runs = [run for run in runs if not run.is_symlink() or len(runs) == 1]
    if not runs:
        raise ConfigError([f"{folder} has no results of runs"])
    found, problems = {}, []
    for run in runs:
        try:
            _check(summary_of(run))
            interrupt(run.resolve())
            found[run] = summary_of(run)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{run / SUMMARY} cannot be read: {error}")
    return found, problems


def refuse(problems: Sequence[str]) -> None:
    """Raise ConfigError for summaries that cannot be read."""
    if problems:
        raise ConfigError(["; ".join(problems)])


def _check(summary: dict[str, Any]) -> None:
    """Raise ValueError for a summary that lacks what is shown of it, or has it in another type."""
    for name in (*TEXTS, *NUMBERS, *SCORES):
        if name not in summary:
            raise ValueError(f"it has no '{name}'")
        value, kind = summary[name], str if name in TEXTS else (int, float)
        if not isinstance(value, kind) and not (value is None and name in SCORES):
            raise ValueError(f"'{name}' is {value!r:.40}")


def _lines(run: Path, summary: dict[str, Any]) -> Iterator[str]:
    final = summary["final"]
    score = f", {summary['metric']} {final:.3f}" if final is not None else ""
    yield f"{run}: {summary['status']} after round {summary['rounds']}{score}"
    if "error" in summary:
        yield f"  {summary['error']}"
    if summary["status"] not in (COMPLETED, RUNNING) and (how := hint(run.resolve())):
        yield f"  {how}"

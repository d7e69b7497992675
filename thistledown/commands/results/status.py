"""`thistledown status`: the status of runs, and how to resume those that were interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server_app.results.endings import COMPLETED, SUMMARY, hint, interrupt, summary_of
from server_app.results.report import RUNNING
from task.schema import ConfigError


def status(folder: Path) -> Iterator[str]:
    """Return the status of one run, or of all runs in a folder of outputs.

    A run with status running whose folder no process locks was interrupted, and is marked so in its folder.
    Raises ConfigError for a folder without results.
    """
    runs = [folder] if (folder / SUMMARY).exists() else sorted(path.parent for path in folder.glob(f"*/{SUMMARY}"))
    runs = [run for run in runs if not run.is_symlink() or len(runs) == 1]
    if not runs:
        raise ConfigError([f"{folder} has no results of runs"])
    for run in runs:
        try:
            interrupt(run.resolve())
            yield from _lines(run, summary_of(run))
        except (OSError, ValueError, KeyError) as error:
            yield f"{run}: its {SUMMARY} cannot be read: {error}"


def _lines(run: Path, summary: dict[str, Any]) -> Iterator[str]:
    final = summary.get("final")
    score = f", {summary['metric']} {final:.3f}" if final is not None else ""
    yield f"{run}: {summary['status']} after round {summary['rounds']}{score}"
    if "error" in summary:
        yield f"  {summary['error']}"
    if summary["status"] not in (COMPLETED, RUNNING) and (how := hint(run.resolve())):
        yield f"  {how}"

"""`thistledown runs`: a table of the runs in a folder of outputs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from server_app.results.amounts import human, lasted
from server_app.results.measure import written
from thistledown.commands.results.status import refuse, summaries

HEADS = ("run", "status", "strategy", "tuning", "rounds", "metric", "before", "best", "last", "sent", "time")
NUMBERS = frozenset({"rounds", "before", "best", "last", "sent", "time"})  # columns that end at the right
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def runs(folder: Path) -> Iterator[str]:
    """Yield a table of the runs in a folder of outputs, the oldest first. Raises ConfigError for a folder without runs,
    and after the table for summaries that cannot be read."""
    found, problems = summaries(folder)
    if found:
        yield from _aligned([HEADS, *(_row(run, summary) for run, summary in found.items())])
    refuse(problems)


def _row(run: Path, summary: dict[str, Any]) -> tuple[str, ...]:
    return (
        run.resolve().name,
        str(summary["status"]),
        str(summary["strategy"]),
        str(summary["tuning"]),
        str(summary["rounds"]),
        str(summary["metric"]),
        *(_score(summary[name]) for name in ("base", "best", "final")),
        human(summary["bytes_up"] + summary["bytes_down"] + summary["bytes_base"]),
        lasted(summary["seconds"]),
    )


def _score(value: float | None) -> str:
    return "-" if value is None else written(value)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with their columns below one another."""
    cells = [[CONTROL.sub(" ", cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        parts = zip(HEADS, row, widths, strict=True)
        yield "  ".join(
            cell.rjust(width) if head in NUMBERS else cell.ljust(width) for head, cell, width in parts
        ).rstrip()

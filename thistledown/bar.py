"""The bottom line of a run on a terminal: its round, quality so far, remaining time, bytes, and who is missing."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from server_app.results.amounts import clock, human
from server_app.results.measure import written

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LEVELS = "▁▂▃▄▅▆▇█"
SPARKS = 20  # newest scores that are drawn
NAMED = 3  # missing nodes that are named
Line = Mapping[str, Any]  # of metrics.jsonl


class Bar:
    """A line that stays below what is printed, and is brought up to date after every round. Without a display it does
    nothing."""

    def __init__(self, display: "Progress | None" = None, task: "TaskID | None" = None) -> None:
        self._display, self._task = display, task

    def show(self, lines: Sequence[Line], metric: str, left: float) -> None:
        """Show the rounds of this process so far. `left`: the seconds that the others will take."""
        if self._display is None or self._task is None or not lines:
            return
        self._display.update(self._task, completed=lines[-1]["round"], state=state(lines, metric, left))


@contextmanager
def bar(total: int) -> Iterator[Bar]:
    """Yield the bar of a run of `total` rounds, which is gone after the block. With 0 rounds, and where plain lines are
    wanted, there is none."""
    if not total or not wanted():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}", markup=False),
    )
    with Progress(*columns, console=Console(), transient=True, refresh_per_second=2) as display:
        yield Bar(display, display.add_task("", total=total, state="starting"))


def wanted() -> bool:
    """Return whether standard output is a terminal that can show a bar, and nobody has asked for plain lines
    (NO_COLOR, https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain and (sys.stdout.encoding or "").lower().startswith("utf")


def state(lines: Sequence[Line], metric: str, left: float) -> str:
    """Return what is known after these rounds: scores as a sparkline, the newest one, bytes, time and missing nodes."""
    scores = [line[metric] for line in lines if line.get(metric) is not None]
    moved = sum(line["bytes_up"] + line["bytes_down"] for line in lines)
    quality = [f"{sparkline(scores[-SPARKS:])} {metric} {written(scores[-1])}"] if scores else []
    eta = [f"ETA {clock(left)}"] if lines[-1]["round"] else []  # nothing is known of it before the first round
    return "  ".join([*quality, human(moved), *eta, *_missing(lines[-1])])


def sparkline(values: Sequence[float]) -> str:
    """Return values as bars from the lowest to the highest of them."""
    low, high = min(values), max(values)
    steps = [(value - low) / (high - low) if high > low else 0.5 for value in values]
    return "".join(LEVELS[min(int(step * len(LEVELS)), len(LEVELS) - 1)] for step in steps)


def _missing(line: Line) -> Iterator[str]:
    """Yield the nodes whose reply did not count in a round, and those that were not asked."""
    names = [node["node"] for node in line["nodes"] if node["refused"]] + list(line["resting"])
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"missing: {', '.join(names[:NAMED])}{more}"

"""The rounds of a run, read from metrics.jsonl as it grows."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server_app.callbacks.progress import progress, remaining
from server_app.results.endings import METRICS, summary_of
from server_app.results.report import RUNNING


class Rounds:
    """Reports every round of a running process as soon as its line is in metrics.jsonl.

    `first` is the first round of this process; earlier lines are from another process. `titles` maps metrics to their
    display names, `total` is the number of the last round.
    """

    def __init__(self, titles: Mapping[str, str], total: int, first: int = 0) -> None:
        self._titles, self._total, self._next = titles, total, first
        self._over: list[float] = []
        self.lines: list[dict[str, Any]] = []  # of metrics.jsonl, of this process
        self._size, self._at_work = 0, False

    def new(self, folder: Path, *, ended: bool = False) -> Iterator[str]:
        """Return the progress lines of rounds that ended since the last call."""
        if not self._starts(folder, ended):
            return
        path = folder / METRICS
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        self._size = size
        for text in path.read_text(encoding="utf-8").splitlines(keepends=True)[self._next :]:
            if text.endswith("\n"):  # else it is being written
                self._next += 1
                self._over.append(time.monotonic())
                self.lines.append(json.loads(text))
                yield progress(self.lines[-1], self._titles, self._total, self._over)

    @property
    def left(self) -> float:
        """Return the seconds that the other rounds will take."""
        return remaining(self.lines[-1], self._total, self._over) if self.lines else 0.0

    def _starts(self, folder: Path, ended: bool) -> bool:
        """Return whether the process has started. Before that, the file may have a line of a round to be repeated."""
        self._at_work = self._at_work or ended or summary_of(folder).get("status") == RUNNING
        return self._at_work

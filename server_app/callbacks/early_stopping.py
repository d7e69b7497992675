"""Early stopping: end a run whose score has stopped improving."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from server_app.results.lines import line_of
from server_app.results.measure import measure_of
from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.types import State
from task.schema import option


@dataclass(frozen=True)
class EarlyStoppingOptions:
    """When to stop."""

    patience: int = option(
        0, low=0, doc="end the run after this many evaluations in a row without a better score; 0: train all rounds"
    )
    min_delta: float = option(0.0, low=0.0, doc="how much better a score must be than the best so far to count")


class EarlyStopping(Callback):
    """Ends a run after `patience` evaluations in a row in which the best score did not improve by more than
    `min_delta`. The score is the one that chooses the best round; void and missing scores do not count.

    `lines` are the lines of metrics.jsonl of earlier rounds, for a run that is resumed.
    """

    def __init__(self, options: EarlyStoppingOptions, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self._options, self._lines = options, list(lines)
        self._best: float | None = None
        self._waited = 0  # evaluations since the best one

    def on_start(self, facts: RunFacts) -> None:
        """Read the scores of earlier rounds."""
        self._measure = measure_of(facts.config)
        for line in self._lines:
            self._see(line)

    def on_round(self, report: RoundReport, state: State) -> None:
        """Stop the run if the score has not improved for `patience` evaluations."""
        self._see(line_of(report, self._measure))
        if self._waited >= self._options.patience and not report.stopped:
            report.stopped = (
                f"{self._waited} evaluations without a better {self._measure.titles[self._measure.metric]} than "
                f"{self._best:.4g} (early-stopping.patience)"
            )

    def _see(self, line: Mapping[str, Any]) -> None:
        score = line.get("chosen-by")
        if score is None:
            return
        least = self._options.min_delta if not self._measure.lowest else -self._options.min_delta
        if self._best is None or self._measure.better(score, self._best + least):
            self._best, self._waited = score, 0
        else:
            self._waited += 1

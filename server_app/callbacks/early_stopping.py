"""Early stopping: end a run whose score has stopped improving, or is as good as it has to be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from server_app.results.lines import line_of
from server_app.results.measure import measure_of
from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.types import State
from task.config import TaskConfig
from task.kinds import registry as kinds
from task.schema import option


@dataclass(frozen=True)
class EarlyStoppingOptions:
    """When to stop."""

    patience: int = option(
        0, low=0, doc="end the run after this many evaluations in a row without a better score; 0: train all rounds"
    )
    min_delta: float = option(0.0, low=0.0, doc="how much better a score must be than the best so far to count")
    target: float = option(0.0, doc="end the run once a score is as good as this; 0: none")
    metric: str = option("", doc="metric of the task kind that counts; empty: the one that chooses the best round")

    def problems(self, config: TaskConfig) -> list[str]:
        """Return what is wrong with the options for a task."""
        kind = kinds.of(config)
        metrics = kind.metrics
        if self.metric and self.metric not in metrics:
            own = f"task.kind = '{kind.name}' has {', '.join(metrics)}"
            return [f"early-stopping.metric = '{self.metric}' is not measured: {own}"]
        metric = metrics[self.metric or kind.chosen_by]
        if self.target and not metric.low <= self.target <= metric.high:
            range = f"{metric.title} is from {metric.low:g} to {metric.high:g}"
            return [f"early-stopping.target = {self.target:g} can never be reached: {range}"]
        return []


class EarlyStopping(Callback):
    """Ends a run after `patience` evaluations in a row in which the best score did not improve by more than
    `min_delta`, and once a score has reached `target`. Scores are those of `metric` on the rows that choose the best
    round; void and missing scores do not count.

    `lines` are the lines of metrics.jsonl of earlier rounds, for a run that is resumed.
    """

    def __init__(self, options: EarlyStoppingOptions, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self._options, self._lines = options, list(lines)
        self._best: float | None = None
        self._waited = 0  # evaluations since the best one

    def on_start(self, facts: RunFacts) -> None:
        """Read the scores of earlier rounds."""
        kind, self._measure = kinds.of(facts.config), measure_of(facts.config)
        self._name = self._options.metric or kind.chosen_by
        self._metric = kind.metrics[self._name]
        for line in self._lines:
            self._see(line)

    def on_scores(self, report: RoundReport, state: State) -> None:
        """Stop the run if the score has not improved for `patience` evaluations, or has reached `target`."""
        score = self._see(line_of(report, self._measure))
        if report.stopped:
            return
        title, options = self._metric.title, self._options
        if score is not None and options.target and not self._better(options.target, score):
            report.stopped = f"{title} is {score:.4g} (early-stopping.target = {options.target:g})"
        elif options.patience and self._waited >= options.patience:
            report.stopped = (
                f"{self._waited} evaluations without a better {title} than {self._best:.4g} (early-stopping.patience)"
            )

    def _see(self, line: Mapping[str, Any]) -> float | None:
        """Return the score in a line of metrics.jsonl, and compare it with the best so far."""
        if line.get("chosen-by") is None:  # not measured, or void
            return None
        score = line.get(f"server-validation-{self._name}", line.get(f"nodes-{self._name}"))
        if score is None:
            return None
        least = -self._options.min_delta if self._metric.lowest else self._options.min_delta
        if self._best is None or self._better(score, self._best + least):
            self._best, self._waited = score, 0
        else:
            self._waited += 1
        return float(score)

    def _better(self, one: float, other: float) -> bool:
        return one < other if self._metric.lowest else one > other

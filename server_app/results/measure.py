"""The metrics of a task kind, their display names, and the one that chooses the best round."""

from collections.abc import Mapping
from dataclasses import dataclass

from task.config import TaskConfig
from task.kinds import registry as kinds
from task.kinds.base import Kind

WIDE = 1e5  # from here on, values are written with an exponent


@dataclass(frozen=True)
class Measure:
    """The metrics of a run. `metric` chooses the best round and is shown first; `lowest`: a lower value is better.

    `titles` maps all metrics to their display names.
    """

    metric: str
    lowest: bool
    titles: Mapping[str, str]

    def better(self, one: float, other: float) -> bool:
        """Return whether `one` is a better value of the metric than `other`."""
        return one < other if self.lowest else one > other

    @property
    def rule(self) -> str:
        """Return in words how the best round is chosen."""
        return f"{'lowest' if self.lowest else 'highest'} {self.titles[self.metric]}"


def measure_of(config: TaskConfig) -> Measure:
    """Return the measure of the task's kind."""
    return _measure(kinds.of(config))


def measure_named(metric: str, kind: str = "") -> Measure:
    """Return the measure of the task kind of this name that chooses by this metric; without a name, of the first kind
    that does. Raises ValueError if there is none."""
    for one in kinds.every():
        if one.chosen_by == metric and kind in ("", one.name):
            return _measure(one)
    raise ValueError(f"no task kind{f' {kind!r}' if kind else ''} chooses by '{metric}'")


def _measure(kind: Kind) -> Measure:
    titles = {name: metric.title for name, metric in kind.metrics.items()}
    return Measure(kind.chosen_by, kind.metrics[kind.chosen_by].lowest, titles)


def written(value: float, decimals: int = 3) -> str:
    """Format a metric."""
    return f"{value:.{decimals}f}" if abs(value) < WIDE else f"{value:.3g}"

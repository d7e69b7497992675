"""What runs measured, read from their results folders, and what it comes to over seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.results.endings import COMPLETED, lines_in, summary_of
from server_app.results.measure import Measure
from server_app.results.page.curves import positions
from server_app.results.split import read_split

LAST = 5  # measured rounds at the end whose mean is a run's quality
GAINED = 0.9  # share of the best gain over the base that is the target
AXES = ("round", "bytes", "seconds")


@dataclass(frozen=True)
class Curve:
    """A run: its positions on each axis, and each metric at every round (None: not measured, or not finite)."""

    seed: int
    metric: str
    error: str  # why it failed; empty if it completed
    axes: Mapping[str, Sequence[float]]
    scores: Mapping[str, Sequence[float | None]]
    split: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, seed: int, measure: Measure) -> "Curve":
        """Read a results folder. `measure` is that of its task kind."""
        summary, lines = summary_of(folder), lines_in(folder)
        error = "" if summary["status"] == COMPLETED else str(summary.get("error", summary["status"]))
        scores = {name: [line.get(name) for line in lines] for name in measure.titles}
        return cls(seed, measure.metric, error, positions(lines), scores, read_split(folder))

    @property
    def base(self) -> float | None:
        """Return the quality before training."""
        return next(iter(self.scores[self.metric]), None)

    @property
    def quality(self) -> float | None:
        """Return the mean of the last measured rounds; None for a run that failed or was not measured."""
        there = [value for value in self.scores[self.metric][1:] if value is not None]
        return statistics.mean(there[-LAST:]) if there and not self.error else None

    def reached(self, target: float, measure: Measure) -> dict[str, float] | None:
        """Return where the curve first is at the target or better, by axis; None if it never is."""
        for index, value in enumerate(self.scores[self.metric]):
            if index and value is not None and not measure.better(target, value):
                return {axis: self.axes[axis][index] for axis in AXES}
        return None


@dataclass(frozen=True)
class Side:
    """The runs of an entry or of a baseline, one for each seed."""

    name: str
    curves: Sequence[Curve]

    @property
    def good(self) -> list[Curve]:
        """Return the runs that have a quality."""
        return [curve for curve in self.curves if curve.quality is not None]

    @property
    def qualities(self) -> dict[int, float]:
        """Return the quality of good runs by seed."""
        return {curve.seed: curve.quality for curve in self.curves if curve.quality is not None}

    @property
    def mean(self) -> float | None:
        """Return the mean quality over seeds."""
        return statistics.mean(self.qualities.values()) if self.qualities else None

    def total(self, axis: str) -> float | None:
        """Return the mean over good runs of where they end on an axis."""
        return statistics.mean(curve.axes[axis][-1] for curve in self.good) if self.good else None

    def band(self, metric: str, over: Callable[[Sequence[float]], float]) -> list[float | None]:
        """Return a statistic over good runs at every round that all of them have; None where one was not measured."""
        columns = zip(*(curve.scores[metric] for curve in self.good), strict=False)
        return [over([v for v in column if v is not None]) if None not in column else None for column in columns]

    def at(self, axis: str) -> list[float]:
        """Return the mean position of every round on an axis."""
        return [statistics.mean(column) for column in zip(*(curve.axes[axis] for curve in self.good), strict=False)]


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Return the differences of two qualities by seed, one for each seed that both have."""
    return [value - other[seed] for seed, value in one.items() if seed in other]


def target_of(sides: Sequence[Side], measure: Measure) -> float | None:
    """Return the quality of the base and GAINED of what the best side gains on it; None if nobody gains."""
    bases = [curve.base for side in sides for curve in side.good if curve.base is not None]
    means = [side.mean for side in sides if side.mean is not None]
    if not bases or not means:
        return None
    base, best = statistics.mean(bases), (min if measure.lowest else max)(means)
    return base + GAINED * (best - base) if measure.better(best, base) else None


def order(sides: Sequence[Side], measure: Measure) -> list[Side]:
    """Return the sides, the best mean quality first; those without a good run last."""
    sign = 1 if measure.lowest else -1
    return sorted(sides, key=lambda side: (side.mean is None, sign * (side.mean or 0.0)))

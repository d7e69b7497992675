"""The rounds of a run so far, the best one, and their summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server_app.results.lines import VOID
from server_app.results.measure import Measure
from server_app.results.samples import BEFORE, BEST, LAST
from task.prediction.ratings import RATINGS

ACCOUNT = ("epsilon", "delta", "accountant")
SUMS = ("bytes_up", "bytes_down", "bytes_base", "parameters_up", "parameters_down")


@dataclass
class History:
    """The lines of metrics.jsonl, round 0 first."""

    measure: Measure
    lines: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None  # one of `lines`
    best_ratings: dict[str, float] = field(default_factory=dict)  # of what the best state wrote; empty: see its round
    resumed: list[int] = field(default_factory=list)  # the rounds after which the run was resumed

    def add(self, line: dict[str, Any]) -> None:
        """Add the line of the next round."""
        self.lines.append(line)
        self._compare(line)

    def _compare(self, line: dict[str, Any]) -> None:
        chosen_by = line.get("chosen-by")
        if chosen_by is not None and (self.best is None or self.measure.better(chosen_by, self.best["chosen-by"])):
            self.best = line

    @property
    def learned(self) -> bool:
        """Return whether any round was trained successfully."""
        return any(not line["failed"] for line in self.lines[1:])

    @property
    def ranks(self) -> dict[str, int]:
        """Return the last rank of every node that took part."""
        return {node["node"]: node["rank"] for line in self.lines for node in line["nodes"]}

    def quality(self) -> dict[str, Any]:
        """Return the metric's first, last and best value on the reported part, and the best round."""
        metric, best = self.measure.metric, self.best or {}
        first = self.lines[0] if self.lines else {}
        # A round has no score if it was not evaluated, or if no node returned a valid one.
        scored: dict[str, Any] = next((line for line in reversed(self.lines) if metric in line), {})
        return {
            "base": first.get(metric),
            "final": scored.get(metric),
            "best": best.get(metric),
            "best-round": best.get("round"),
            "best-chosen-by": best.get("chosen-by"),
            **_unless_empty("void-rounds", {line["round"]: line[VOID] for line in self.lines if VOID in line}),
            **_unless_empty("generations", self.ratings()),
        }

    def ratings(self) -> dict[str, dict[str, float]]:
        """Return the ratings of generated answers before training, after the last round and by the best state, as far
        as there are any."""
        rated = [(line["round"], own) for line in self.lines if (own := _ratings(line))]
        found = {BEFORE if number == 0 else LAST: own for number, own in rated}
        best = self.best_ratings or dict(rated).get((self.best or {}).get("round", 0))
        return found | ({BEST: best} if best else {})

    def course(self) -> dict[str, Any]:
        """Return rounds, failures, participants and traffic."""
        last = self.lines[-1] if self.lines else {}
        back = {line["round"]: line["rolled-back"] for line in self.lines if "rolled-back" in line}
        return {
            "rounds": last.get("round", 0),
            **_unless_empty("resumed", self.resumed),
            "failed-rounds": sum(bool(line["failed"]) for line in self.lines),
            **_unless_empty("rolled-back", back),
            "ranks": self.ranks,
            **{name: last[name] for name in ACCOUNT if name in last},
            "parameters": last.get("parameters", 0),
            **{name: sum(line[name] for line in self.lines) for name in SUMS},
        }


def _ratings(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratings of generated answers in a line: those of the server, else the mean over nodes."""
    for prefix in ("server-test-", "nodes-"):
        if found := {name: line[f"{prefix}{name}"] for name in RATINGS if f"{prefix}{name}" in line}:
            return found
    return {}


def _unless_empty(key: str, value: Mapping[Any, Any] | Sequence[int]) -> dict[str, Any]:
    """Return an entry of a summary, none for an empty value."""
    return {key: value} if value else {}

"""Numbers of a page: the runs of a study that count, and means and errors over seeds."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.derived import Content
from benchmarks.study import LOSS, mean_of_last


@dataclass(frozen=True)
class Outcome:
    """A method in a setting at the learning rate that its search chose; `runs` are those that completed."""

    setting: Content
    method: str
    rate: float | None  # None: the search goes on, or no rate works
    searched: bool
    runs: list[Content]
    failed: int

    def values(self, name: str) -> list[float]:
        """`final` or `last-5`, by seed."""
        return [run[name] for run in self.runs]

    @property
    def metric(self) -> str:
        """What the setting goes by."""
        return str(self.setting["metric"])

    @property
    def lowest(self) -> bool:
        """Whether less of it is better."""
        return self.metric == LOSS

    def lists(self, name: str) -> list[list[Any]]:
        """What was measured round by round, the state before training left out, by seed; None where nothing was."""
        return [run["measured"][name][1:] for run in self.runs]

    def last(self, name: str) -> list[float]:
        """Mean over the last rounds of what was measured, by seed."""
        return [mean_of_last(run["measured"][name]) for run in self.runs]

    @property
    def rounds_to_target(self) -> float:
        """Mean over seeds; infinite if a run did not get there, or failed."""
        reached = [run["rounds-to-target"] for run in self.runs]
        return math.inf if self.failed or None in reached or not reached else statistics.mean(reached)

    def total(self, name: str) -> float:
        """Sum over rounds, mean over seeds."""
        return statistics.mean(sum(values) for values in self.lists(name))


def outcomes(content: Content, setting: Content) -> list[Outcome]:
    """Those of a setting, best mean of the last rounds first; methods without a completed run last."""
    searches = {search["method"]: search for search in content["search"] if search["setting"] == setting["name"]}
    found = []
    for method in setting["methods"]:
        search = searches[method]
        rate, searched = search["chosen"], 0 < len(search["grid"]) == len(search["scores"])
        own = [run for run in content["runs"] if (run["setting"], run["method"]) == (setting["name"], method)]
        runs = [run for run in own if run["rate"] == rate]
        good = [run for run in runs if run["status"] == "completed"]
        found.append(Outcome(setting, method, rate, searched, good, len(runs) - len(good)))
    sign = 1 if setting["metric"] == LOSS else -1
    return sorted(found, key=lambda outcome: sign * statistics.mean(outcome.values("last-5") or [sign * math.inf]))


def paired(one: Outcome, other: Outcome, name: str = "last-5") -> list[float]:
    """Return the differences of a value, one for each seed with which both completed."""
    theirs = {run["seed"]: run[name] for run in other.runs}
    return [run[name] - theirs[run["seed"]] for run in one.runs if run["seed"] in theirs]

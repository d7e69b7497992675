"""Progress of a run, one line per round: round, scores, traffic and remaining time."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server_app.results.amounts import clock, human
from server_app.results.lines import VOID, line_of
from server_app.results.measure import measure_of, written
from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.types import State

LOG = logging.getLogger("flwr")


class Progress(Callback):
    """Prints one line per round through `say`, by default to the log."""

    def __init__(self, say: Callable[[str], None] = LOG.info) -> None:
        self._say = say
        self._over: list[float] = []  # when each round of this process ended, in seconds

    def on_start(self, facts: RunFacts) -> None:
        """Read the metrics and the number of rounds."""
        self._measure, self._total = measure_of(facts.config), facts.rounds

    def on_round(self, report: RoundReport, state: State) -> None:
        """Print the line of the round."""
        self._over.append(time.monotonic())
        line = line_of(report, self._measure)
        self._say(progress(line, self._measure.titles, self._total, self._over))


def progress(line: Mapping[str, Any], titles: Mapping[str, str], total: int, over: Sequence[float]) -> str:
    """Return the progress line of a round out of `total`.

    `line` is the round's entry in metrics.jsonl, `titles` maps metrics to their display names, and `over` lists the
    times at which the rounds of this process ended, in seconds.
    """
    done = line["round"]
    said = [f"{title} {written(line[name])}" for name, title in titles.items() if line.get(name) is not None]
    void = f"void ({line[VOID]})" if VOID in line else "not evaluated"
    quality = "  ".join(said) or void
    if done == 0:
        return f"round 0/{total}  {quality}  (before training)"
    if line.get("train-loss") is not None:
        quality += f"  train loss {written(line['train-loss'])}"
    if "epsilon" in line:
        quality += f"  epsilon {'unbounded' if line['epsilon'] is None else written(line['epsilon'], 2)}"
    traffic = f"up {human(line['bytes_up'])}  down {human(line['bytes_down'])}"
    left = remaining(line, total, over)
    return f"round {done}/{total}  {quality}  {traffic}  {line['seconds']:.1f} s  ETA {clock(left)}"


def remaining(line: Mapping[str, Any], total: int, over: Sequence[float]) -> float:
    """Return the seconds that the rounds after this one will take; arguments as of `progress`."""
    return _pace(line["seconds"], over) * (total - int(line["round"]))


def _pace(seconds: float, over: Sequence[float]) -> float:
    """Return the mean number of seconds per round, or `seconds` if only one round has ended.

    Nodes start up in the first trained round, so that round is left out once there is another one.
    """
    counted = over[1:] if len(over) > 2 else over
    steps = len(counted) - 1
    return (counted[-1] - counted[0]) / steps if steps > 0 else seconds

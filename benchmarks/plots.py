"""Plots of a page: the metric by round, and by what was moved. Equal numbers give equal files."""

import statistics
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.figures import Outcome
from benchmarks.savings import parameters


def draw(path: Path, outcomes: list[Outcome], target: float, *, by_parameters: bool) -> None:
    """One SVG of a setting: the mean over seeds of every method, and a band of one standard deviation."""
    import matplotlib
    from matplotlib.figure import Figure

    metric = outcomes[0].metric
    styles = matplotlib.cycler(linestyle=("-", "--", ":")) * matplotlib.rcParams["axes.prop_cycle"]
    with matplotlib.rc_context({"svg.hashsalt": "thistledown", "axes.prop_cycle": styles}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        by_round, by_traffic = figure.subplots(1, 2, sharey=True)
        for outcome in outcomes:
            _curve(by_round, outcome, list(range(1, len(outcome.lists(metric)[0]) + 1)))
            _curve(by_traffic, outcome, list(accumulate(_moved(outcome, by_parameters))))
        by_round.set(xlabel="round", ylabel=f"{metric}, test part")
        by_traffic.set(xlabel=f"million {'parameters' if by_parameters else 'bytes'} moved so far, up and down")
        by_traffic.set_xscale("log")
        for panel in (by_round, by_traffic):
            panel.axhline(target, color="grey", linewidth=0.8, linestyle=":")
            panel.grid(alpha=0.3)
        figure.legend(*by_round.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _moved(outcome: Outcome, by_parameters: bool) -> list[float]:
    """Millions, by round, of the first seed."""
    if by_parameters:
        return [count / 1e6 for count in parameters(outcome.runs[0])]
    ways = (outcome.lists("bytes_up")[0], outcome.lists("bytes_down")[0])
    return [(up + down) / 1e6 for up, down in zip(*ways, strict=True)]


def _curve(axes: Any, outcome: Outcome, places: Sequence[float]) -> None:
    """The rounds that were measured."""
    values = zip(places, *outcome.lists(outcome.metric), strict=True)
    places, *by_seed = zip(*(column for column in values if None not in column), strict=True)
    by_round = list(zip(*by_seed, strict=True))
    means = [statistics.mean(values) for values in by_round]
    line = axes.plot(places, means, label=outcome.method, marker=".")[0]
    if len(by_round[0]) > 1:
        spread = [statistics.stdev(values) for values in by_round]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)

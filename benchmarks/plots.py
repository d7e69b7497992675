"""Plots of a page: accuracy by round and, where asked for, by parameters moved. Equal numbers give equal files."""

import statistics
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.figures import Outcome
from benchmarks.savings import parameters


def draw(path: Path, outcomes: list[Outcome], target: float, *, by_parameters: bool) -> None:
    """One SVG of a setting: the mean over seeds of every method, and a band of one standard deviation."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "thistledown"}):
        figure = Figure(figsize=(11 if by_parameters else 7, 4), layout="constrained")
        panels = figure.subplots(1, 2 if by_parameters else 1, sharey=True, squeeze=False)[0]
        for outcome in outcomes:
            _curve(panels[0], outcome, list(range(1, len(outcome.lists("accuracy")[0]) + 1)))
            if by_parameters:
                _curve(panels[1], outcome, [moved / 1e6 for moved in accumulate(parameters(outcome.runs[0]))])
        panels[0].set(xlabel="round", ylabel="accuracy, test part")
        if by_parameters:
            panels[1].set(xlabel="million parameters moved so far, up and down", xscale="log")
        for panel in panels:
            panel.axhline(target, color="grey", linewidth=0.8, linestyle=":")
            panel.grid(alpha=0.3)
        panels[0].legend(fontsize="small")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _curve(axes: Any, outcome: Outcome, places: list[float]) -> None:
    by_round = list(zip(*outcome.lists("accuracy"), strict=True))
    means = [statistics.mean(values) for values in by_round]
    line = axes.plot(places, means, label=outcome.method, marker=".")[0]
    if len(by_round[0]) > 1:
        spread = [statistics.stdev(values) for values in by_round]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)

"""The headline and the summary of a run: its plan, its scores and its cost."""

from collections.abc import Iterator, Mapping
from typing import Any

from server_app.config import RunConfig
from server_app.results.amounts import counted, human

WHEN = {"before": "before", "last": "at the end", "best": "by the best round"}


def headline(config: RunConfig) -> str:
    """Return the plan of a run in one line."""
    task, server = config.task, config.server
    size = f"{counted(server.simulation.num_supernodes, 'node')}, {counted(server.num_server_rounds, 'round')}"
    return f"{config.strategy.name} with tuning {task.tuning.name}: {size}, seed {task.seed}"


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the contents of summary.json as text."""
    lines = ["", *_quality(summary)]
    if summary["failed-rounds"]:
        lines.append(f"{counted(summary['failed-rounds'], 'round')} failed and changed nothing; metrics.jsonl says why")
    if "epsilon" in summary:
        spent = "unbounded" if summary["epsilon"] is None else f"{summary['epsilon']:.2f}"
        how = f" (by {summary['accountant']})" if "accountant" in summary else ""
        lines.append(f"privacy: epsilon {spent} at delta {summary['delta']:g}{how}")
    if "stopped" in summary:
        lines.append(f"it ended before its last round: {summary['stopped']}")
    rounds, nodes = counted(summary["rounds"], "round"), counted(len(summary["ranks"]), "node")
    offered = f", and the base once: {human(summary['bytes_base'])}" if summary["bytes_base"] else ""
    traffic = f"{human(summary['bytes_up'])} up, {human(summary['bytes_down'])} down{offered}"
    lines.append(f"{rounds} over {nodes} in {summary['seconds']:.0f} s: {traffic}")
    lines += [f"notice: {notice}" for notice in summary.get("notices", ())]
    if "usage" in summary:
        lines += ["the tuned model, in Python:", *summary["usage"]]
    lines.append(f"results in {summary['folder']}")
    return lines


def _quality(summary: Mapping[str, Any]) -> Iterator[str]:
    """Return the metric before and after the run, and the best round with the rows that chose it."""
    metric, before, after = summary["metric"], _said(summary["base"]), _said(summary["final"])
    if summary["base"] is None and summary["final"] is None and "void-rounds" not in summary:
        yield f"{metric} was not measured"
        return
    by_nodes = summary["metric-source"].startswith("nodes")
    shown, chooses = ("rows that nodes hold out",) * 2 if by_nodes else ("the test part", "the validation part")
    yield f"{metric} on {shown}: {before} before, {after} at the end"
    if summary["best"] is not None:
        order = "lowest" if "by the lowest" in summary["metric-source"] else "highest"
        chosen = f"round {summary['best-round']} is the best, with the {order} {metric} on {chooses}"
        chosen += f" ({_said(summary['best-chosen-by'])})" if "best-chosen-by" in summary else ""
        yield chosen if by_nodes else f"{chosen}; on {shown} it has {_said(summary['best'])}"
    if states := summary.get("generations"):
        ratings = ", ".join(f"{_said(own['rouge-l'])} {WHEN[state]}" for state, own in states.items())
        yield f"Rouge-L of generated answers on {shown}: {ratings}"
    for number, reason in summary.get("void-rounds", {}).items():
        yield f"the score of round {number} is void: {reason}"


def _said(value: float | None) -> str:
    return "void" if value is None else f"{value:.3f}"

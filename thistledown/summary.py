"""The last lines of a run: what it achieved and what it cost."""

from collections.abc import Mapping
from typing import Any

from server_app.progress import human


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The contents of a summary.json for people."""
    lines = ["", _quality(summary)]
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
    lines.append(f"results in {summary['folder']}")
    return lines


def _quality(summary: Mapping[str, Any]) -> str:
    metric, before, after = summary["metric"], summary["base"], summary["final"]
    if before is None or after is None:
        return f"{metric} was not measured"
    best = f"best {summary['best']:.3f} in round {summary['best-round']}" if summary["best"] is not None else ""
    return f"{metric} {before:.3f} -> {after:.3f}, {best} ({summary['metric-source']})"


def counted(count: int, what: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{count} {what}{'' if count == 1 else 's'}"

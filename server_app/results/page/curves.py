"""The curves of a run: every metric by round, by bytes and by seconds, of the shared model and of each node."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from server_app.results.lines import OVERALL

Line = Mapping[str, Any]
SHARED = "shared model"
NODES = 60  # that have curves and lines in tables of a page
OTHERS = {"train-loss": "training loss", "aggregation-error": "aggregation error", "epsilon": "epsilon"}
X = [
    {"key": "round", "title": "round", "kind": "count"},
    {"key": "bytes", "title": "bytes sent so far, up and down", "kind": "bytes"},
    {"key": "seconds", "title": "seconds so far", "kind": "seconds"},
]


def curves(lines: Sequence[Line], titles: Mapping[str, str], best: int | None) -> dict[str, Any]:
    """Return the data of a chart from the lines of metrics.jsonl; {} if nothing was measured. `titles` are those of
    metrics, `best` is the number of the best round."""
    axes = positions(lines)
    series = [one for one in _series(lines, titles) if any(key not in ("name", "group", "shown") for key in one)]
    measured = {key for one in series for key in one}
    y = [
        {"key": key, "title": title, "kind": "metric"} for key, title in {**titles, **OTHERS}.items() if key in measured
    ]
    if not y:
        return {}
    return {"x": X, "y": y, "series": [one | axes for one in series], "marks": _best_round(axes, lines, best)}


def positions(lines: Sequence[Line]) -> dict[str, list[float]]:
    """Return where rounds stand on each axis: their number, and bytes and seconds up to their end."""
    return {
        "round": [line["round"] for line in lines],
        "bytes": list(accumulate(line["bytes_up"] + line["bytes_down"] for line in lines)),
        "seconds": [round(total, 3) for total in accumulate(line["seconds"] for line in lines)],
    }


def node_names(lines: Sequence[Line]) -> list[str]:
    """Return the nodes that trained, evaluated or rested, in the order of their numbers or names."""
    found = {one["node"] for line in lines for one in [*line["nodes"], *line.get("evaluations", ())]}
    found |= {name for line in lines for name in line["resting"]}
    return sorted(found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def trained(lines: Sequence[Line], node: str, metric: str) -> list[float | None]:
    """Return what a node said of its training in every round; None where it did not."""
    return [_said(line["nodes"], node, metric) for line in lines]


def scored(lines: Sequence[Line], node: str, metric: str) -> list[float | None]:
    """Return what a node scored in every round; None where it did not."""
    return [_said(line.get("evaluations", ()), node, metric) for line in lines]


def _said(reports: Iterable[Mapping[str, Any]], node: str, metric: str) -> float | None:
    return next((one["metrics"].get(metric) for one in reports if one["node"] == node and not one["refused"]), None)


def _series(lines: Sequence[Line], titles: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    yield {"name": SHARED} | _columns(lines, {key: key for key in (*titles, "train-loss", "epsilon")}, _errors(lines))
    both = any(f"server-test-{key}" in line for line in lines for key in titles)
    yield {"name": f"{SHARED}, validation part", "shown": False} | _columns(
        lines, {key: f"server-validation-{key}" for key in titles}
    )
    if both:
        means = _columns(lines, {key: f"nodes-{key}" for key in titles})
        yield {"name": f"{SHARED}, mean over nodes", "shown": False} | means
    for node in node_names(lines)[:NODES]:
        found = {key: scored(lines, node, key) for key in titles} | {"train-loss": trained(lines, node, "train-loss")}
        yield {"name": f"node {node}", "group": "nodes", "shown": False} | _filled(found)


def _columns(lines: Sequence[Line], keys: Mapping[str, str], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return _filled({own: [line.get(key) for line in lines] for own, key in keys.items()} | dict(more or {}))


def _errors(lines: Sequence[Line]) -> dict[str, list[float | None]]:
    return {"aggregation-error": [line["aggregation-error"].get(OVERALL) for line in lines]}


def _filled(columns: Mapping[str, list[float | None]]) -> dict[str, list[float | None]]:
    """Return the columns that have a value."""
    return {key: values for key, values in columns.items() if any(value is not None for value in values)}


def _best_round(axes: Mapping[str, list[float]], lines: Sequence[Line], best: int | None) -> list[dict[str, Any]]:
    """Return where the best round stands, to be named; nothing where its line was lost with a process that wrote it."""
    found = [index for index, line in enumerate(lines) if line["round"] == best]
    at = ({key: values[index] for key, values in axes.items()} for index in found[:1])
    return [{"title": f"best: round {best}", "round": best, **place} for place in at]

"""A round as a line of metrics.jsonl: what was scored, what was sent, who took part."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from server_app.results.measure import Measure
from strategies.exchange.callback import RoundReport

OVERALL = "overall"  # among aggregation errors
VOID = "void"  # the key of a line whose score does not count, and why


def line_of(report: RoundReport, measure: Measure) -> dict[str, Any]:
    """Return a round as JSON can hold it; quality under plain names, by whoever is asked first: the server, else nodes.

    A score beside a loss that is no finite number is void: where a model answers NaN, the first class is taken for its
    answer, and has its share of the rows.
    """
    server, nodes = report.evaluated_by_server, report.evaluated_by_nodes
    named = {f"server-{k}": v for k, v in server.items()} | {f"nodes-{k}": v for k, v in nodes.items()}
    named |= {f"nodes-median-{k}": v for k, v in report.medians_of_nodes.items() if k in measure.titles}
    line = {
        "round": report.number,
        **_quality(report, measure),
        "train-loss": report.train.get("train-loss"),
        "aggregation-error": report.aggregation_error,
        **named,
        **report.privacy,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "bytes_base": report.bytes_base,
        "parameters_up": report.parameters_up,
        "parameters_down": report.parameters_down,
        "parameters": report.parameters,
        "seconds": round(report.seconds, 3),
        "failed": report.failed,
        **({"rolled-back": report.rolled_back} if report.rolled_back else {}),
        "resting": report.resting,
        "nodes": [asdict(line) for line in report.nodes],
    }
    finite: dict[str, Any] = _finite(line)
    return finite


def row_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of metrics.jsonl as one row of a table: of nodes and resting ones it counts how many there are, of
    aggregation errors it has the overall one."""
    row = {key: value for key, value in line.items() if not isinstance(value, list | dict)}
    return row | {
        "aggregation-error": line["aggregation-error"].get(OVERALL),
        "nodes": len(line["nodes"]),
        "refused": sum(bool(node["refused"]) for node in line["nodes"]),
        "resting": len(line["resting"]),
    }


def written_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as everybody reads it. Raises ValueError for NaN and infinity, which it has no words for."""
    return json.dumps(value, indent=indent, allow_nan=False)


def _quality(report: RoundReport, measure: Measure) -> dict[str, Any]:
    server, nodes = report.evaluated_by_server, report.evaluated_by_nodes
    if broken := sorted(name for name, value in server.items() if not math.isfinite(value)):
        reason = f"{', '.join(broken)}: no finite number"
        return dict.fromkeys(measure.titles) | {"chosen-by": None, VOID: reason}
    if server:
        scored = {name: server[f"test-{name}"] for name in measure.titles}
        return scored | {"chosen-by": server[f"validation-{measure.metric}"]}
    if nodes:
        return {name: nodes[name] for name in measure.titles} | {"chosen-by": nodes[measure.metric]}
    return {}


def _finite(value: Any) -> Any:
    """The same with None for numbers that are none."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

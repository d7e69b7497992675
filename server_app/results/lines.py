"""The lines of metrics.jsonl, one per round: scores, traffic, participants."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from server_app.results.measure import Measure
from strategies.exchange.callback import RoundReport
from task.prediction.ratings import RATINGS

OVERALL = "overall"  # key among the aggregation errors
VOID = "void"  # key of a line whose score does not count; its value is the reason


def line_of(report: RoundReport, measure: Measure) -> dict[str, Any]:
    """Return a round as JSON values. Quality has plain names and comes from the server, or else from the nodes.

    A score is void if the loss is not finite. A model that outputs NaN always predicts the first class, and would
    score that class's share of the rows.
    """
    server, nodes = report.evaluated_by_server, report.evaluated_by_nodes
    named = {f"server-{k}": v for k, v in server.items()} | {f"nodes-{k}": v for k, v in nodes.items()}
    medians = {k: v for k, v in report.medians_of_nodes.items() if k in measure.titles or k in RATINGS}
    named |= {f"nodes-median-{k}": v for k, v in medians.items()}
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
        **({} if report.connected is None else {"connected": report.connected}),
        "nodes": [asdict(line) for line in report.nodes],
        **({"evaluations": [asdict(line) for line in report.evaluations]} if report.evaluations else {}),
    }
    finite: dict[str, Any] = _finite(line)
    return finite


def row_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of metrics.jsonl as one row of a table, with the numbers of nodes, refused replies and resting
    nodes, and the overall aggregation error."""
    row = {key: value for key, value in line.items() if not isinstance(value, list | dict)}
    return row | {
        "aggregation-error": line["aggregation-error"].get(OVERALL),
        "nodes": len(line["nodes"]),
        "refused": sum(bool(node["refused"]) for node in line["nodes"]),
        "resting": len(line["resting"]),
    }


def written_json(value: Any, indent: int | None = None) -> str:
    """Return standard JSON. Raises ValueError for NaN and infinity, which JSON cannot express."""
    return json.dumps(value, indent=indent, allow_nan=False)


def _quality(report: RoundReport, measure: Measure) -> dict[str, Any]:
    server, nodes = report.evaluated_by_server, report.evaluated_by_nodes
    if broken := sorted(name for name, value in server.items() if not math.isfinite(value)):
        reason = f"{', '.join(broken)}: not finite"
        return dict.fromkeys(measure.titles) | {"chosen-by": None, VOID: reason}
    if server:
        scored = {name: server[f"test-{name}"] for name in measure.titles}
        return scored | {"chosen-by": server[f"validation-{measure.metric}"]}
    if nodes:
        return {name: nodes[name] for name in measure.titles} | {"chosen-by": nodes[measure.metric]}
    return {}


def _finite(value: Any) -> Any:
    """Return the value with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

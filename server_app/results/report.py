"""The HTML report of a run: quality by round and by bytes sent, and the cost of every round."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server_app.results.measure import written
from server_app.results.samples import sample_table
from task.prediction.ratings import RATINGS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .8rem .15rem 0; text-align: right } td:first-child, th:first-child { text-align: left }
svg { max-width: 100%; height: auto } .refused { color: #b00 }
.texts td, .texts th { text-align: left; vertical-align: top; white-space: pre-wrap; padding-bottom: .6rem }
"""


def write_report(
    path: Path, summary: dict[str, Any], rounds: Sequence[dict[str, Any]], titles: Mapping[str, str]
) -> None:
    """Write one self-contained HTML page from the summary and the lines of metrics.jsonl.

    `titles` maps metrics to their display names.
    """
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in summary.items())
    title = f"{summary['strategy']} with {summary['tuning']}"
    ending = _ending(summary)
    plots = _plots(summary["metric"], titles, rounds)
    path.write_text(
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1>{ending}{plots}<h2>Rounds</h2>{round_table(titles, rounds)}"
        f"{_nodes(titles, rounds)}{ratings_table(summary.get('generations', {}))}{sample_table(path.parent)}"
        f"{_refusals(rounds)}<h2>Summary</h2><table>{rows}</table>\n",
        encoding="utf-8",
    )


def _ending(summary: Mapping[str, Any]) -> str:
    """Return why a run did not complete, and its notices, as HTML."""
    said = [f"The run was {summary['status']}." if summary["status"] == "interrupted" else ""]
    said += [f"The run failed: {summary['error']}" if "error" in summary else "", *summary.get("notices", ())]
    return "".join(f"<p class='refused'>{html.escape(text)}</p>" for text in said if text)


def _plots(metric: str, titles: Mapping[str, str], rounds: Sequence[dict[str, Any]]) -> str:
    """Return plots of quality by round and by bytes sent so far, as inline SVG."""
    scored = [entry for entry in rounds if entry.get(metric) is not None]
    if not scored:
        return "<p>Nothing was measured.</p>"
    import matplotlib
    from matplotlib.figure import Figure

    moved, total = {}, 0
    for entry in rounds:
        total += entry["bytes_up"] + entry["bytes_down"]
        moved[entry["round"]] = total / 1e6
    with matplotlib.rc_context({"svg.hashsalt": "thistledown"}):
        figure = Figure(figsize=(10, 3.6))  # a layout that is computed takes as long as the drawing
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.15, top=0.96, wspace=0.06)
        by_round, by_bytes = figure.subplots(1, 2, sharey=True)
        values = [entry[metric] for entry in scored]
        by_round.plot([entry["round"] for entry in scored], values, marker="o")
        by_round.set(xlabel="round", ylabel=titles[metric])
        by_bytes.plot([moved[entry["round"]] for entry in scored], values, marker="o")
        by_bytes.set(xlabel="MB moved so far, up and down")
        for axes in (by_round, by_bytes):
            axes.grid(alpha=0.3)
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    return drawing.getvalue()[drawing.getvalue().index("<svg") :]


def round_table(titles: Mapping[str, str], rounds: Sequence[dict[str, Any]]) -> str:
    """Return the rounds as an HTML table."""
    account = {name: name for name in ("epsilon",) if any(name in entry for entry in rounds)}
    titles = {**titles, **account}
    head = "".join(f"<th>{name}</th>" for name in ("round", *titles.values(), "up", "down", "seconds", "nodes"))
    lines = []
    for entry in rounds:
        good = sum(not node["refused"] for node in entry["nodes"])
        cells = [entry["round"], *(_number(entry.get(name)) for name in titles)]
        cells += [entry["bytes_up"], entry["bytes_down"], entry["seconds"], f"{good}/{len(entry['nodes'])}"]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _nodes(titles: Mapping[str, str], rounds: Sequence[dict[str, Any]]) -> str:
    """Return what nodes scored first and last as an HTML table; empty if they did not evaluate."""
    scored = [(entry["round"], entry["evaluations"]) for entry in rounds if entry.get("evaluations")]
    if not scored:
        return ""
    ends = dict([scored[0], scored[-1]])
    head = "".join(f"<th>{title}, round {number}</th>" for title in titles.values() for number in ends)
    found = {number: {one["node"]: one["metrics"] for one in lines} for number, lines in ends.items()}
    rows = []
    for node in sorted({name for by_node in found.values() for name in by_node}):
        cells = "".join(
            f"<td>{_number(found[number].get(node, {}).get(name))}</td>" for name in titles for number in ends
        )
        rows.append(f"<tr><td>{html.escape(node)}</td>{cells}</tr>")
    return f"<h2>Nodes</h2><table><tr><th>node</th>{head}</tr>{''.join(rows)}</table>"


def _refusals(rounds: Sequence[dict[str, Any]]) -> str:
    failed = [f"<li>round {entry['round']}: {html.escape(entry['failed'])}</li>" for entry in rounds if entry["failed"]]
    said = [
        f"<li>round {entry['round']}, node {html.escape(node['node'])}: {html.escape(node['refused'])}</li>"
        for entry in rounds
        for node in entry["nodes"]
        if node["refused"]
    ]
    return _list("Failed rounds", failed) + _list("Refused replies", said)


def _list(title: str, items: list[str]) -> str:
    return f"<h2>{title}</h2><ul class='refused'>{''.join(items)}</ul>" if items else ""


def ratings_table(generations: Mapping[str, Mapping[str, float]]) -> str:
    """Return the ratings of generated answers, by state, as an HTML table; empty if there are none."""
    if not generations:
        return ""
    head = "".join(f"<th>{metric.title}</th>" for metric in RATINGS.values())
    rows = "".join(
        f"<tr><td>{state}</td>{''.join(f'<td>{_number(own.get(name))}</td>' for name in RATINGS)}</tr>"
        for state, own in generations.items()
    )
    return f"<h2>Generations</h2><table><tr><th>state</th>{head}</tr>{rows}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else written(value, 4)

"""The rounds of a run as tables: scores and costs, and what failed."""

from collections.abc import Mapping, Sequence

from server_app.results.amounts import human, lasted, ranges
from server_app.results.lines import OVERALL, VOID
from server_app.results.measure import written
from server_app.results.page.curves import OTHERS, Line
from server_app.results.page.markup import Html, element, folded, joined, listed, section, table


def round_table(titles: Mapping[str, str], lines: Sequence[Line]) -> Html:
    """Return the rounds as an HTML table. `titles` maps metrics to their display names."""
    more = [key for key in ("train-loss", "epsilon") if any(line.get(key) is not None for line in lines)]
    titles = {**titles, **{key: OTHERS[key] for key in more}}
    head = ["round", *titles.values(), "up", "down", "time", "nodes"]
    return table(head, [_cells(titles, line) for line in lines], "the rounds")


def _cells(titles: Mapping[str, str], line: Line) -> list[str]:
    good = sum(not node["refused"] for node in line["nodes"])
    scores = ["" if line.get(name) is None else written(line[name], 4) for name in titles]
    costs = [human(line["bytes_up"]), human(line["bytes_down"]), lasted(line["seconds"])]
    return [str(line["round"]), *scores, *costs, f"{good} of {len(line['nodes'])}"]


def error_table(lines: Sequence[Line]) -> Html:
    """Return the aggregation error of the last round that has one, by module, folded; nothing without one."""
    found = next((line for line in reversed(lines) if line["aggregation-error"]), None)
    if found is None:
        return Html()
    errors = found["aggregation-error"]
    rows = [[name, written(value, 4)] for name, value in errors.items() if name != OVERALL and value is not None]
    whole = errors.get(OVERALL)
    said = f"Aggregation error of round {found['round']}: {written(whole, 4) if whole is not None else 'not finite'}"
    about = "How far the combined adapters are from the mean of the nodes' products, relative to that mean; 0 is exact."
    return folded(
        said, element("p", about, class_="soft"), table(["module", "error"], rows, "aggregation error by module")
    )


def failures(lines: Sequence[Line]) -> Html:
    """Return everything that failed, with reasons: rounds, scores, and replies, equal ones of a node together."""
    failed = [f"round {line['round']}: {line['failed']}" for line in lines if line["failed"]]
    void = [f"round {line['round']}: {line[VOID]}" for line in lines if VOID in line]
    back = [f"round {line['round']}: {line['rolled-back']}" for line in lines if "rolled-back" in line]
    parts = {
        "Failed rounds": failed,
        "Void scores": void,
        "Rounds that were taken back": back,
        "Refused replies": _refusals(lines, "nodes"),
        "Refused scores": _refusals(lines, "evaluations"),
    }
    return joined(section(title, listed(items, "bad")) for title, items in parts.items() if items)


def _refusals(lines: Sequence[Line], kind: str) -> list[str]:
    rounds: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        for one in line.get(kind, ()):
            if one["refused"]:
                rounds.setdefault((one["node"], one["refused"]), []).append(line["round"])
    return [
        f"{'round' if len(own) == 1 else 'rounds'} {ranges(own)}, node {node}: {reason}"
        for (node, reason), own in rounds.items()
    ]

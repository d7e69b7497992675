"""The nodes of a run: what each did, scored and cost, who took part when, and how the rows were split."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from server_app.results.amounts import human, lasted
from server_app.results.measure import Measure, written
from server_app.results.page.curves import NODES, Line, node_names, scored, trained
from server_app.results.page.markup import Html, element, joined, section, table

ROUNDS = 100  # newest rounds that are shown
ANSWERED, REFUSED, RESTED, NOT_ASKED = "●", "✕", "z", "·"
CLASSES = 40  # of the split that are shown


def node_sections(lines: Sequence[Line], measure: Measure, split: Mapping[str, Any]) -> Html:
    """Return the sections about nodes. `split` is what split.json holds, {} for nodes with own rows."""
    return joined([_nodes(lines, measure), _split(split), _turns(lines)])


def _nodes(lines: Sequence[Line], measure: Measure) -> Html:
    """Return a row for each node: its rows, rank, quality from first to last, turns, bytes and seconds."""
    names = node_names(lines)
    if not names:
        return Html()
    scores = {name: scored(lines, name, measure.metric) for name in names[:NODES]}
    title = measure.titles[measure.metric]
    quality = ("first", "best", "last", "change") if any(v is not None for own in scores.values() for v in own) else ()
    heads = [f"{title}, {when}" for when in quality]
    head = ["node", "rows", "rank", *heads, "answered", "up", "down", "seconds a round"]
    rows = [[name, *_row(lines, name, scores[name], measure, bool(quality))] for name in names[:NODES]]
    more = element("p", f"And {len(names) - NODES} more nodes.", class_="soft") if len(names) > NODES else Html()
    return section("Nodes", table(head, rows, "the nodes"), more)


def _row(
    lines: Sequence[Line], node: str, scores: Sequence[float | None], measure: Measure, quality: bool
) -> list[str | Html]:
    own = [one for line in lines for one in line["nodes"] if one["node"] == node]
    there = [value for value in scores if value is not None]
    seconds = [value for value in trained(lines, node, "seconds") if value is not None]
    cells: list[str | Html] = [_last(trained(lines, node, "num-examples")), str(own[-1]["rank"] or "") if own else ""]
    if quality:
        cells += _moved(there, measure) if there else ["", "", "", ""]
    answered = sum(not one["refused"] for one in own)
    cells += [f"{answered} of {len(own)}", human(sum(one["bytes_up"] for one in own))]
    return [*cells, human(sum(one["bytes_down"] for one in own)), lasted(statistics.median(seconds)) if seconds else ""]


def _last(values: Sequence[float | None]) -> str:
    """Return the last count, or nothing where no reply told one."""
    return next((f"{value:,.0f}" for value in reversed(values) if value is not None), "")


def _moved(scores: list[float], measure: Measure) -> list[str | Html]:
    """Return first, best and last score, and the change as a small curve with its number."""
    change, best = scores[-1] - scores[0], (min if measure.lowest else max)(scores)
    kind = "good" if measure.better(scores[-1], scores[0]) else "bad" if change else "soft"
    number = element("span", f"{change:+.3f}", class_=kind)
    return [written(scores[0]), written(best), written(scores[-1]), element("td", _spark(scores), " ", number)]


def _spark(values: Sequence[float]) -> Html:
    """Return a curve of the size of a word; the numbers beside it say the same."""
    low, high = min(values), max(values)
    points = " ".join(
        f"{100 * n / max(1, len(values) - 1):.1f},{19 - 18 * (value - low) / ((high - low) or 1):.1f}"
        for n, value in enumerate(values)
    )
    return Html(
        f'<svg class="spark" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{points}"/></svg>'
    )


def _split(split: Mapping[str, Any]) -> Html:
    """Return the rows of each node, by class if classes have names, coloured by their share of the node's rows."""
    if not split:
        return Html()
    names, labels = list(split["nodes"]), split["labels"][:CLASSES]
    rows = [[name, *_counts(split["nodes"][name], bool(labels))] for name in names[:NODES]]
    note = []
    if len(names) > NODES:
        note.append(f"{len(names) - NODES} more nodes are in split.json.")
    if len(split["labels"]) > CLASSES:
        note.append(f"{len(split['labels']) - CLASSES} more classes are in split.json.")
    about = "Training rows of each node" + (
        " and class; the darker, the larger its share of the node." if labels else "."
    )
    heat = table(["node", "rows", *labels], rows, "training rows of each node and class", "heat")
    return section("Split", element("p", " ".join([about, *note]), class_="soft"), heat)


def _counts(counts: Sequence[int], by_class: bool) -> list[str | Html]:
    total = sum(counts)
    shown = counts[:CLASSES] if by_class else []
    return [
        f"{total:,}",
        *(element("td", f"{count:,}" if count else "·", style=f"--s:{count / total:.3f}") for count in shown),
    ]


def _turns(lines: Sequence[Line]) -> Html:
    """Return who took part in which round."""
    names, shown = node_names(lines), [line for line in lines if line["round"]][-ROUNDS:]
    if not names or not shown:
        return Html()
    states = [_states(line) for line in shown]
    rows = [[name, *(states_of.get(name, _turn(NOT_ASKED)) for states_of in states)] for name in names[:NODES]]
    key = {
        ANSWERED: "answered",
        REFUSED: "no valid reply",
        RESTED: "left alone after no answer",
        NOT_ASKED: "not asked",
    }
    said = ", ".join(f"{sign} {meaning}" for sign, meaning in key.items())
    if shown[0]["round"] > 1:
        said += f". The newest {len(shown)} rounds"
    head = ["node", *(str(line["round"]) for line in shown)]
    legend = element("p", said + ".", class_="soft")
    return section("Who took part when", legend, table(head, rows, "who took part in which round", "turns"))


def _states(line: Line) -> dict[str, Html]:
    resting = {name: _turn(RESTED) for name in line["resting"]}
    return resting | {one["node"]: _turn(REFUSED if one["refused"] else ANSWERED) for one in line["nodes"]}


def _turn(sign: str) -> Html:
    kind = {ANSWERED: "in", REFUSED: "out"}.get(sign, "soft")
    return element("td", sign, class_=kind)

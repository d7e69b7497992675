"""The page of a comparison: one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from typing import Any

from server_app.results.page.curves import X
from server_app.results.page.frame import chart, page
from server_app.results.page.markup import Html, element, folded, listed, section, table
from server_app.results.page.settings import shown
from task.versions import versions
from thistledown.comparison.curves import GAINED, LAST, Side
from thistledown.comparison.findings import Findings, Table
from thistledown.comparison.significance import LEVEL

Differing = Mapping[str, Sequence[Any]]  # values of each entry by key


def comparison_page(findings: Findings, differing: Differing, problems: Sequence[str]) -> str:
    """Return the page. `differing` are the settings in which entries differ, `problems` are runs that did not begin."""
    names = [side.name for side in findings.sides]
    failed = [
        f"{side.name}, seed {curve.seed}: {curve.error}"
        for side in (*findings.sides, *filter(None, [findings.central]), *findings.alone.values())
        for curve in side.curves
        if curve.error
    ]
    joining = findings.joining()
    settings = [[key, *("" if value is None else shown(value) for value in own)] for key, own in differing.items()]
    found = [[name, number or "none"] for name, number in versions().items()]
    content = [
        element("h1", f"Comparison of {', '.join(names)}"),
        element("p", findings.headline(), class_="lead"),
        section("Result", _table(findings.table(), "the sides of the comparison"), *_notes(findings)),
        _curves(findings),
        section("Does joining pay, and for whom?", _table(joining, "gain of each node"), _of_joining())
        if joining
        else Html(),
        section("Runs that failed", listed([*failed, *problems], "bad")) if failed or problems else Html(),
        section(
            "Configuration",
            table(["key", *names], settings, "settings that differ", "texts") if settings else Html(),
            folded("Versions", table(["package", "version"], found, "versions", "texts")),
        ),
    ]
    return page(f"Comparison of {', '.join(names)}", content)


def _table(rows: Table, about: str) -> Html:
    """Return a table of texts as HTML; a text between stars is emphasised."""
    head, *body = rows
    return table(head, [[_emphasised(cell) for cell in row] for row in body], about)


def _emphasised(cell: str) -> str | Html:
    return element("em", cell.strip("*")) if cell.startswith("*") and cell.endswith("*") else cell


def _notes(findings: Findings) -> list[Html]:
    count = len(findings.sides) - 1 + bool(findings.central) + bool(findings.alone)
    said = [
        f"Quality: mean {findings.title} of the last {LAST} measured rounds, ± the standard deviation over seeds.",
        f"Ahead or behind: a paired t test over seeds has p below {LEVEL:g}. Of {count} comparisons of equals about "
        f"{count * LEVEL:.1f} would be called different by chance."
        if count
        else "",
        "Bytes count both directions. Seconds are of runs whose nodes worked one after another on this machine.",
    ]
    if findings.target is not None:
        said.append(
            f"The target is {findings.target:.3f}" + (": what it takes for " if findings.measure.lowest else ", ")
            + f"the base and {GAINED:.0%} of the best gain on it, unless another was named."
        )  # fmt: skip
    return [element("p", " ".join(filter(None, said)), class_="soft")]


def _of_joining() -> Html:
    said = (
        "Alone: the node trains on its own rows only, for as many rounds, and is scored on everyone's test rows. "
        "A gain is the quality of the federation less that, the mean over seeds. Where rows are split at random, a "
        "node has other rows with each seed."
    )
    return element("p", said, class_="soft")


def _curves(findings: Findings) -> Html:
    """Return quality by round, bytes and seconds: means over seeds, with a band from the least to the greatest."""
    sides = [side for side in findings.sides if side.good]
    if not sides:
        return Html()
    metrics = findings.measure.titles
    series = [_series(side, metrics) for side in sides]
    if findings.central and findings.central.good:
        series.append(_series(findings.central, metrics) | {"name": "all rows in one place"})
    for name, own in findings.alone.items():
        if own.good:
            alone = _series(own, metrics) | {"name": f"node {name} alone", "group": "nodes alone", "shown": False}
            series.append({key: value for key, value in alone.items() if key != "bytes"})
    y = [{"key": key, "title": title, "kind": "metric"} for key, title in metrics.items()]
    caption = "Mean over seeds; the band goes from the least to the greatest."
    return section("Curves", chart("comparison", caption, {"x": X, "y": y, "series": series}))


def _series(side: Side, metrics: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": side.name, **{axis["key"]: side.at(axis["key"]) for axis in X}}
    for name in metrics:
        found[name] = side.band(name, lambda values: sum(values) / len(values))
        if len(side.good) > 1:
            found |= {f"{name}:low": side.band(name, min), f"{name}:high": side.band(name, max)}
    return found

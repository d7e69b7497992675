"""The HTML report of a run: what it reached, how, at what cost, who took part, and what failed."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server_app.config import keys
from server_app.results.amounts import counted, human, lasted
from server_app.results.measure import Measure, measure_named, written
from server_app.results.page.curves import curves
from server_app.results.page.frame import cards, chart, page
from server_app.results.page.markup import Html, element, folded, joined, section, table
from server_app.results.page.nodes import node_sections
from server_app.results.page.rounds import error_table, failures, round_table
from server_app.results.page.settings import setting_tables
from server_app.results.samples import generation_table, prediction_table
from server_app.results.split import read_split
from server_app.results.started import CONFIG, flat
from task.modes import as_the_folder
from task.prediction.ratings import RATINGS

Line = Mapping[str, Any]
REPORT = "report.html"
RUNNING = "running"
BEFORE = re.compile(r"'/[^']*/(?=[^'/]+')")  # what is left out of a path in Python


def write_report(folder: Path, summary: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """Write the report of a run to its results folder; `summary` and `lines` are those of the folder."""
    draft = folder / f".{REPORT}"
    draft.write_text(report(folder, summary, lines), encoding="utf-8")
    as_the_folder(draft)
    draft.replace(folder / REPORT)


def report(folder: Path, summary: Mapping[str, Any], lines: Sequence[Line], version: str = "") -> str:
    """Return one self-contained HTML page. `version`: of a page that is served while the run goes on."""
    settings = _settings(folder)
    measure = measure_named(summary["metric"], settings.get("task.kind", ""))
    title = f"{summary['strategy']} with {summary['tuning']}"
    content = [
        element("h1", title),
        element("p", headline(summary, measure), class_="lead"),
        _remarks(summary),
        cards(dict(_figures(summary, measure))),
        _quality(summary, lines, measure),
        node_sections(lines, measure, read_split(folder)),
        section("Rounds", round_table(measure.titles, lines), error_table(lines)) if lines else Html(),
        _ratings(summary.get("generations", {})),
        generation_table(folder),
        prediction_table(folder),
        failures(lines),
        _use(summary),
        section("Configuration", setting_tables(settings, _defaults()), _versions(summary)),
    ]
    return page(title, content, version)


def headline(summary: Mapping[str, Any], measure: Measure) -> str:
    """Return in one sentence what the run reached and what it cost."""
    rounds, nodes = counted(summary["rounds"], "round"), counted(len(summary["ranks"]), "node")
    traffic = f"{human(summary['bytes_up'] + summary['bytes_down'])} crossed the wire"
    course = f"{rounds} over {nodes}; {traffic}."
    title, before, best = measure.titles[measure.metric], summary["base"], summary["best"]
    title = title[:1].upper() + title[1:]
    if best is None:
        return (
            f"{title} was not measured yet, in {course}"
            if _running(summary)
            else f"{title} was not measured, in {course}"
        )
    if before is None:
        return f"{title} reached {written(best)} in {course}"
    if not measure.better(best, before):
        return f"{title} did not improve on the untrained {written(before)} in {course}"
    verb = "fell" if measure.lowest else "rose"
    return f"{title} {verb} from {written(before)} to {written(best)} in {course}"


def _running(summary: Mapping[str, Any]) -> bool:
    return bool(summary["status"] == RUNNING)


def _remarks(summary: Mapping[str, Any]) -> Html:
    """Return the status of a run that did not complete, why it ended, and its notices."""
    said = []
    if _running(summary):
        said.append(element("p", "The run goes on.", class_="good"))
    if summary["status"] == "interrupted":
        said.append(element("p", "The run was interrupted.", class_="bad"))
    if "error" in summary:
        said.append(element("p", f"The run failed: {summary['error']}", class_="bad"))
    if "stopped" in summary:
        said.append(element("p", f"It ended before its last round: {summary['stopped']}"))
    return joined([*said, *(element("p", f"Notice: {notice}", class_="bad") for notice in summary.get("notices", ()))])


def _figures(summary: Mapping[str, Any], measure: Measure) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the most important figures: title, value and remark."""
    title = measure.titles[measure.metric]
    if summary["best"] is not None:
        yield f"best {title}", (written(summary["best"]), f"round {summary['best-round']}")
    if summary["final"] is not None:
        before = "" if summary["base"] is None else f"{written(summary['base'])} before training"
        yield f"{title} at the end", (written(summary["final"]), before)
    failed = f"{summary['failed-rounds']} failed" if summary["failed-rounds"] else ""
    yield "rounds", (f"{summary['rounds']:,}", failed)
    ranks = sorted(set(summary["ranks"].values()) - {0})
    yield "nodes", (f"{len(summary['ranks']):,}", f"rank {', '.join(map(str, ranks))}" if ranks else "")
    yield "sent up", (human(summary["bytes_up"]), "from nodes to the server")
    base = f"and the base once: {human(summary['bytes_base'])}" if summary["bytes_base"] else ""
    yield "sent down", (human(summary["bytes_down"]), base)
    yield "time", (lasted(summary["seconds"]), "")
    if summary.get("parameters"):
        yield "exchanged numbers", (f"{summary['parameters']:,}", "")
    if "epsilon" in summary:
        spent = "unbounded" if summary["epsilon"] is None else f"{summary['epsilon']:.2f}"
        how = f", by {summary['accountant']}" if "accountant" in summary else ""
        yield "privacy spent, epsilon", (spent, f"at delta {summary['delta']:g}{how}")


def _quality(summary: Mapping[str, Any], lines: Sequence[Line], measure: Measure) -> Html:
    data = curves(lines, measure.titles, summary["best-round"])
    if not data:
        return section("Quality", element("p", "Nothing was measured."))
    return section("Quality", chart("quality", f"Measured by {summary['metric-source']}.", data))


def _ratings(generations: Mapping[str, Mapping[str, float]]) -> Html:
    """Return the ratings of generated answers, by state; nothing without any."""
    if not generations:
        return Html()
    head = ["state", *(metric.title for metric in RATINGS.values())]
    rows = [
        [state, *("" if own.get(name) is None else written(own[name], 4) for name in RATINGS)]
        for state, own in generations.items()
    ]
    return section("Generations", table(head, rows, "ratings of generated answers"))


def _use(summary: Mapping[str, Any]) -> Html:
    """Return the lines of Python that load the model, with names of folders in place of paths on this machine."""
    folder = Path(summary["folder"])
    lines = [BEFORE.sub("'", line.replace(str(folder), folder.name)) for line in summary.get("usage", ())]
    return section("Use", element("pre", element("code", "\n".join(lines)), tabindex="0")) if lines else Html()


def _versions(summary: Mapping[str, Any]) -> Html:
    found = summary.get("versions")
    rows = [[name, number or "none"] for name, number in (found or {}).items()]
    return folded("Versions", table(["package", "version"], rows, "versions", "texts")) if rows else Html()


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return flat(tomllib.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _defaults() -> dict[str, Any]:
    """Return the default of every key as config.toml has it: lists as texts."""
    return {
        key: option.separator.join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        for key, option in keys().items()
    }

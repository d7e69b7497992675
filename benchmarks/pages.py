"""The page of a study: `<study>.md` and a plot for every setting, from the study's JSON file alone."""

import math
import statistics
from collections import Counter
from pathlib import Path

from benchmarks import records
from benchmarks.cells import bold, share, signed, spread, table
from benchmarks.derived import Content, derive
from benchmarks.figures import Outcome, outcomes, paired
from benchmarks.generations import generations
from benchmarks.plots import draw
from benchmarks.savings import INITIATING, savings
from benchmarks.study import LOSS
from thistledown.comparison.significance import BEHIND, EQUAL, ONE_SEED, chance, error_of_mean, verdict


def write(path: Path) -> None:
    """Write the page and the plots next to the JSON file at `path`."""
    found = derive(*records.read(path))
    path.with_suffix(".md").write_text(page(found), encoding="utf-8")
    for setting in _shown(found):
        if ran := _ran(found, setting):
            plot = path.with_name(_plot(found, setting))
            draw(plot, ran, setting["target"], by_parameters=found["savings"])


def page(content: Content) -> str:
    """Return the page as Markdown, from what benchmarks.derived finds."""
    sections = [_head(content), *(_section(content, setting) for setting in _shown(content))]
    return "\n\n".join([*sections, _search(content), _failures(content), _published(content)]).rstrip() + "\n"


def _shown(content: Content) -> list[Content]:
    """Return the settings that are more than a search."""
    return [setting for setting in content["settings"] if not setting["search-only"]]


def _head(content: Content) -> str:
    facts = (
        f"`{content['command']}` repeats it and resumes where it was interrupted; the numbers are in "
        f"[{content['study']}.json]({content['study']}.json), one run a line; "
        f"`.venv/bin/python -m benchmarks.derived {content['study']}` prints the command of every run. Seeds "
        f"{', '.join(map(str, content['seeds']))}."
    )
    reading = (
        "± is the standard deviation over seeds. Accuracy or loss is that of the test part. Tables are sorted by the "
        "mean of the last five rounds; the best value of a column is bold. A method is ahead or behind if a paired t "
        "test over seeds says so at 5 %; over three seeds only large and steady differences pass it. The first round "
        "at the target is given for every seed; `> N`: not reached in N rounds. The aggregation error is the distance "
        "of the aggregate from the mean of the nodes' products, relative to the latter, mean over rounds and seeds. "
        "Bytes are those of all nodes and rounds, without offers of the base."
    )
    return "\n\n".join([f"# {content['title']}", *content["about"], facts, reading])


def _section(content: Content, setting: Content) -> str:
    found = outcomes(content, setting)
    ran = _ran(content, setting)
    parts = [f"## {setting['name']}", setting["about"]]
    parts += [_rates(setting)] if setting["rates-of"] else []
    if "level" in setting:
        what, value = setting["level"]
        parts.append(f"To compare with: {what}, {value:.3f}.")
    if not ran:
        return "\n\n".join([*parts, "Not run yet."])
    parts.append(f"Measured on {_machines(ran)}.")
    plot = f"![{ran[0].metric} by round]({_plot(content, setting)})"
    parts += [plot, _results(found, ran, setting), generations(ran)]
    reference = _named(ran, content["reference"])
    if reference is not None:
        parts.append(_comparison(ran, reference))
        parts += [_savings(ran, reference)] if content["savings"] else []
        parts.append(_floor(ran, content["floor"]))
        parts.append(f"One of the runs: `{reference.runs[0]['command']}`")
    return "\n\n".join(filter(None, parts))


def _rates(setting: Content) -> str:
    """Return which rates a setting takes from another."""
    found = f"those that were found best in {setting['rates-of']}"
    if not _searches(setting):
        held = f", with what was found best in {setting['holds']}" if setting["holds"] else ""
        return f"Learning rates are {found}{held}."
    times = " or ".join(f"{share:.3g}" for share in setting["shares"])
    return f"Learning rates are searched again: {found}, times {times}."


def _searches(setting: Content) -> bool:
    """Return whether the setting chooses rates by its own runs."""
    return not setting["rates-of"] or len(setting["shares"]) > 1


def _ran(content: Content, setting: Content) -> list[Outcome]:
    return [outcome for outcome in outcomes(content, setting) if outcome.runs]


def _named(ran: list[Outcome], name: str) -> Outcome | None:
    return next((outcome for outcome in ran if outcome.method == name), None)


def _machines(ran: list[Outcome]) -> str:
    """What the runs that count were measured on; how many of them on each, where it was not one machine."""
    counts = Counter(run["measured"]["on"] for outcome in ran for run in outcome.runs)
    if len(counts) == 1:
        return next(iter(counts))
    return "; and on ".join(f"{where} ({count} runs)" for where, count in counts.most_common())


def _plot(content: Content, setting: Content) -> str:
    return f"{content['study']}-{setting['name']}.svg"


def _results(found: list[Outcome], ran: list[Outcome], setting: Content) -> str:
    best = statistics.mean(ran[0].values("last-5"))
    soonest = min(outcome.rounds_to_target for outcome in ran)
    heads = ["method", f"first round at {share(setting['target'], 2)}", "mean of last 5", "last round"]
    by_loss = ran[0].metric == LOSS
    heads += ["accuracy, last 5"] if by_loss else []  # it can rank two methods otherwise
    heads += ["MB up", "MB down", "aggregation error", "rate", "runs"]
    rows = []
    for outcome in found:
        if not outcome.runs:
            rows.append([outcome.method, *[""] * (len(heads) - 2), _count(outcome)])
            continue
        last_5 = outcome.values("last-5")
        rows.append(
            [
                outcome.method,
                bold(_rounds(outcome), outcome.rounds_to_target == soonest < math.inf),
                bold(spread(last_5), statistics.mean(last_5) == best),
                spread(outcome.values("final")),
                *([spread(outcome.last("accuracy"))] if by_loss else []),
                f"{outcome.total('bytes_up') / 1e6:.1f}",
                f"{outcome.total('bytes_down') / 1e6:.1f}",
                _aggregation_error(outcome),
                f"{outcome.rate:g}",
                _count(outcome),
            ]
        )
    return table(heads, rows)


def _comparison(ran: list[Outcome], reference: Outcome) -> str:
    """Return a table of every method against the reference."""
    rows = []
    for outcome in ran:
        if outcome is reference:
            continue
        gaps = paired(outcome, reference)
        sooner = reference.rounds_to_target - outcome.rounds_to_target  # nan where neither gets there
        rounds = f"{0.0 - sooner:+.1f}" if math.isfinite(sooner) else ""
        p = chance(gaps)
        said = [
            f"{signed(statistics.mean(gaps))} ± {share(error_of_mean(gaps))}" if gaps else "",
            "" if math.isnan(p) else "< .001" if p < 0.001 else share(p),
            verdict(gaps, outcome.lowest),
        ]
        rows.append([outcome.method, *said, rounds, _ratio(outcome, reference)])
    heads = [
        f"against {reference.method}",
        "mean of last 5, difference by seed ± standard error",
        "p",
        "so it is",
        "rounds to target, difference",
        "its bytes",
    ]
    return table(heads, rows) if rows else ""


def _floor(ran: list[Outcome], name: str) -> str:
    """Return which methods are not above the one that all should beat."""
    floor = _named(ran, name)
    if floor is None:
        return ""
    found: dict[str, list[str]] = {BEHIND: [], EQUAL: [], ONE_SEED: []}
    for outcome in ran:
        if outcome is not floor and (said := verdict(paired(outcome, floor), outcome.lowest)) in found:
            found[said].append(outcome.method)
    listed = "; ".join(f"{', '.join(names)} ({said})" for said, names in found.items() if names)
    return f"Not ahead of {name}: {listed}." if listed else f"All others are ahead of {name}."


def _ratio(outcome: Outcome, reference: Outcome) -> str:
    """Return the bytes up and down, divided by those of the reference."""
    moved, others = (one.total("bytes_up") + one.total("bytes_down") for one in (outcome, reference))
    return f"1/{others / moved:,.0f}" if others > 9.5 * moved else f"x {moved / others:.2f}"


def _savings(ran: list[Outcome], reference: Outcome) -> str:
    rows = []
    for outcome in ran:
        if INITIATING not in outcome.runs[0]["options"]:
            continue  # the reference, and its like
        saved = savings(outcome, reference)
        shares = [f"{100 * share:.2f} %" for share in (saved.annealed, saved.whole, saved.counted)]
        rows.append([outcome.method, *shares, f"{saved.handover / 1e6:.2f} M"])
    heads = [f"parameters saved against {reference.method}", "without the initiating stage", "with it"]
    return table([*heads, "with it and the hand-over", "hand-over"], rows) if rows else ""


def _search(content: Content) -> str:
    rows = []
    searching = {setting["name"] for setting in content["settings"] if _searches(setting)}
    own = [search for search in content["search"] if search["setting"] in searching]
    for search in own:
        scores = search["scores"]
        shown = (bold(f"{rate:g}: {_score(scores, rate)}", rate == search["chosen"]) for rate in search["grid"])
        option = "" if search["option"] == "learning-rate" else f"`{search['option']}` "
        end = ", at an end of what was tried" if search["at-an-end"] else ""
        rows.append([search["setting"], search["method"], option + ", ".join(shown) + end])
    by = " or ".join(dict.fromkeys(search["by"] for search in own))
    rule = (
        f"Chosen by {by}; a failed run loses. Bold is what was used for all seeds. Where it is at an "
        "end of what was tried, a better one may lie beyond."
    )
    return f"## Learning rates\n\n{rule}\n\n" + table(["setting", "method", "rate: on validation rows"], rows)


def _score(scores: dict[float, float | None], rate: float) -> str:
    if rate not in scores:
        return "not run yet"
    score = scores[rate]
    return "failed" if score is None else share(score)


def _failures(content: Content) -> str:
    failed = [
        f"- {run['setting']}, {run['method']}, seed {run['seed']}, rate {run['rate']:g}: {run['measured']['error']}"
        for run in content["runs"]
        if run["status"] == "failed"
    ]
    return "## Runs that failed\n\n" + ("\n".join(failed) or "None.")


def _published(content: Content) -> str:
    return "\n\n".join(["## Published, not reproduced here", *content["published"]])


def _rounds(outcome: Outcome) -> str:
    """Return the rounds by seed, and the mean if all reached the target."""
    reached = [run["rounds-to-target"] for run in outcome.runs]
    by_seed = ", ".join(
        f"> {len(run['measured']['loss']) - 1}" if r is None else str(r) for run, r in zip(outcome.runs, reached)
    )
    mean = outcome.rounds_to_target
    return f"{mean:.1f} ({by_seed})" if math.isfinite(mean) and len(reached) > 1 else by_seed


def _aggregation_error(outcome: Outcome) -> str:
    values = [value for run in outcome.lists("aggregation-error") for value in run if value is not None]
    return f"{statistics.mean(values):.2f}" if values else ""


def _count(outcome: Outcome) -> str:
    if outcome.rate is None:
        return "failed at every rate" if outcome.searched else "search not finished"
    return str(len(outcome.runs)) + (f", {outcome.failed} failed" if outcome.failed else "")


if __name__ == "__main__":
    for file in sorted(records.RESULTS.glob("*.json")):
        write(file)

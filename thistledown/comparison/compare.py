"""`thistledown compare`: runs what is missing of a comparison, prints its table, and writes its page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server_app.outputs import problem_of
from server_app.results.measure import Measure, measure_of, written
from task.device import cores
from task.schema import ConfigError
from thistledown.comparison.curves import Curve, Side, target_of
from thistledown.comparison.entries import Entry, differing, entries
from thistledown.comparison.findings import Findings, markdown
from thistledown.comparison.jobs import ALONE, CENTRAL, FEDERATED, LONGEST_FIRST, Job, baselines, federated
from thistledown.comparison.page import comparison_page
from thistledown.comparison.workers import Progress, run_all

PAGE = "compare.html"
MOST_SEEDS = 100
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """The arguments of the command. `jobs` 0: as many as cores allow. `target` None: found by what the best gains."""

    texts: Sequence[str]
    seeds: int
    with_baselines: bool
    jobs: int
    target: float | None
    to: Path
    overrides: Sequence[str]


def compare(asked: Asked, say: Say) -> bool:
    """Run what has not been run, and return whether every run could begin and one of each entry completed.

    Raises ConfigError for arguments that do not fit.
    """
    sides, jobs = _planned(asked)
    measure = measure_of(sides[0].config.task)
    at_once = _at_once(asked.jobs, sides)
    waiting = [job for job in jobs if not job.over]
    done = f", {len(jobs) - len(waiting)} of them done before" if len(waiting) < len(jobs) else ""
    say(f"{len(jobs)} runs{done}; {at_once} at a time, results in {asked.to}")
    problems = run_all(waiting, at_once, Progress(waiting, at_once, lambda job: _scored(job, measure), say))
    findings = _findings(asked, sides, jobs, measure)
    path = asked.to / PAGE
    asked.to.mkdir(parents=True, exist_ok=True)
    said = [f"{job.title}: {problem}" for job, problem in problems.items()]
    path.write_text(comparison_page(findings, differing(sides), said), encoding="utf-8")
    for line in ("", *markdown(findings.table()), "", *_joining(findings), findings.headline()):
        say(line)
    for problem in said:
        say(f"not run: {problem}")
    for job in jobs:
        if job.failure:
            say(f"{job.title} failed: {job.failure}; remove {job.folder} to run it again")
    say(f"the page is {path}")
    return not problems and all(side.good for side in findings.sides)


def _planned(asked: Asked) -> tuple[list[Entry], list[Job]]:
    """Return the entries and all jobs. Raises ConfigError."""
    problems = [f"--seeds {asked.seeds}: give a number from 1 to {MOST_SEEDS}"] * (not 1 <= asked.seeds <= MOST_SEEDS)
    problems += [problem] if (problem := problem_of(asked.to, "--to")) else []
    if problems:
        raise ConfigError(problems)
    found = entries(asked.texts, asked.overrides, Path.cwd())
    first = int(found[0].values["seed"])
    seeds = range(first, first + asked.seeds)
    jobs = list(federated(found, seeds, asked.to))
    if asked.with_baselines:
        jobs += baselines(found[0], seeds, asked.to)
    if len(found) == 1 and not asked.with_baselines:
        raise ConfigError(["there is nothing to compare: name two or more, or add --baselines"])
    return found, sorted(jobs, key=lambda job: LONGEST_FIRST.index(job.kind))


def _at_once(jobs: int, sides: Sequence[Entry]) -> int:
    """Return how many runs work at a time. Raises ConfigError for more than there are cores."""
    if not 0 <= jobs <= cores():
        raise ConfigError([f"--jobs {jobs}: this process may use {cores()} cores, and every run needs one"])
    return jobs or max(1, cores() // max(int(side.values["threads"]) for side in sides))


def _scored(job: Job, measure: Measure) -> str:
    """Return the quality that a run ended with, or why it failed."""
    curve = Curve.read(job.results, job.seed, measure)
    if curve.quality is None:
        return f"failed: {curve.error or 'nothing was measured'}"
    return f"{measure.titles[measure.metric]} {written(curve.quality)}"


def _findings(asked: Asked, entries: Sequence[Entry], jobs: Sequence[Job], measure: Measure) -> Findings:
    """Return what all runs that are over have measured."""
    over: dict[tuple[str, str], list[Curve]] = {}
    for job in jobs:
        if job.over:
            over.setdefault((job.kind, job.name), []).append(Curve.read(job.results, job.seed, measure))
    sides = [_side(entry, over.get((FEDERATED, entry.name), []), measure) for entry in entries]
    nodes = sorted({(job.node, job.name) for job in jobs if job.node is not None})
    central = over.get((CENTRAL, CENTRAL))
    target = asked.target if asked.target is not None else target_of(sides, measure)
    names = _names(sides, len(nodes))
    named = {names[node]: Side(name, over[ALONE, name]) for node, name in nodes if (ALONE, name) in over}
    return Findings(sides, measure, target, named, Side(CENTRAL, central) if central else None)


def _side(entry: Entry, curves: Sequence[Curve], measure: Measure) -> Side:
    finished = [Curve.read(folder, seed, measure) for seed, folder in entry.finished.items()]
    return Side(entry.name, sorted([*finished, *curves], key=lambda curve: curve.seed))


def _names(sides: Sequence[Side], count: int) -> Sequence[str]:
    """Return the names of nodes by number, as the split has them."""
    splits: list[Mapping[str, object]] = [
        curve.split["nodes"] for side in sides for curve in side.curves if curve.split
    ]
    named = list(splits[0]) if splits else []
    return named if len(named) == count else [str(number) for number in range(count)]


def _joining(findings: Findings) -> list[str]:
    table = findings.joining()
    return [*markdown(table), ""] if table else []

"""What follows from a study and its numbers: the outcome of every search, the command and the results of every run.

.venv/bin/python -m benchmarks.derived rbla prints the command of every run in docs/results/rbla.json.
"""

from typing import Any

from benchmarks.study import LOSS, Measured, Method, Run, Setting, Study, mean_of_last, validation

Content = dict[str, Any]


def derive(study: Study, done: dict[str, Measured]) -> Content:
    """Return all that a page tells, as values by name."""
    settings = {setting.name: setting for setting in study.settings}
    return {
        "study": study.name,
        "title": study.title,
        "about": study.about,
        "published": study.published,
        "command": f"make results-{study.name}",
        "reference": study.reference,
        "floor": study.floor,
        "savings": study.savings,
        "seeds": study.seeds,
        "settings": [_setting(setting) for setting in study.settings],
        "search": [_search(study, setting, method, done) for setting, method in study.contests()],
        "runs": [_run(run, settings[run.setting], done[run.key]) for run in study.possible(done) if run.key in done],
    }


def _setting(setting: Setting) -> Content:
    return {
        "name": setting.name,
        "about": setting.about,
        "target": setting.target,
        "metric": setting.metric,
        "rates-of": setting.rates_of.name if setting.rates_of else "",
        "shares": setting.shares,
        "holds": setting.holds.name if setting.holds else "",
        "searched": setting.searched,
        "search-only": setting.search_only,
        **({"level": setting.level()} if setting.level else {}),
        "methods": [method.name for method in setting.methods],
    }


def _search(study: Study, setting: Setting, method: Method, done: dict[str, Measured]) -> Content:
    """`scores` are by rate; None for a run that failed."""
    scores = study.scores(setting, method, done)
    return {
        "setting": setting.name,
        "method": method.name,
        "option": setting.searches(method),
        "grid": study.grid(setting, method, done),
        "scores": scores,
        "chosen": study.chosen(setting, method, done),
        "at-an-end": study.at_an_end(setting, method, done),
        "by": setting.rule,
    }


def _run(run: Run, setting: Setting, measured: Measured) -> Content:
    """What the run was, what follows from its numbers, and the numbers."""
    failed, values = bool(measured["error"]), measured[setting.metric]
    sign = -1 if setting.metric == LOSS else 1
    reached = (n for n, value in enumerate(values) if n and value is not None and sign * value >= sign * setting.target)
    return {
        "setting": run.setting,
        "method": run.method,
        "seed": run.seed,
        "rate": run.rate,
        "options": run.options,
        "command": f".venv/bin/thistledown run {' '.join(_quoted(part) for part in run.arguments)}",
        "status": "failed" if failed else "completed",
        "rounds-to-target": None if failed else next(reached, None),
        "final": None if failed else values[-1],
        "last-5": None if failed else mean_of_last(values),
        "validation": validation(measured),
        "measured": measured,
    }


def _quoted(argument: str) -> str:
    return f'"{argument}"' if " " in argument or "'" in argument else argument


if __name__ == "__main__":
    import sys

    from benchmarks import records

    for run in derive(*records.read(records.RESULTS / f"{sys.argv[1]}.json"))["runs"]:
        print(run["command"])

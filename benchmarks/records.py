"""The JSON file of a study: what it declared, and every run with its numbers and what it ran on. It is also the memory
of the study: a run that is in it is not run again.
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.study import LOSS, Measured, Method, Run, Setting, Study, key, mean_of_last, validation

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def load(path: Path) -> dict[str, Measured]:
    """What was measured, by run key; empty where there is no file."""
    if not path.exists():
        return {}
    return {key(run["preset"], run["options"]): run["measured"] for run in json.loads(path.read_text())["runs"]}


def save(path: Path, study: Study, done: dict[str, Measured]) -> None:
    """Write the whole file, so that a reader never sees half of it. Runs that no search can want are dropped."""
    settings = {setting.name: setting for setting in study.settings}
    content = {
        "study": study.name,
        "title": study.title,
        "about": study.about,
        "published": study.published,
        "command": f"make results-{study.name}",
        "reference": study.reference,
        **({"floor": study.floor} if study.floor else {}),
        "savings": study.savings,
        "seeds": study.seeds,
        "settings": [_setting(setting) for setting in study.settings],
        "search": [_search(study, setting, method, done) for setting, method in study.contests()],
        "runs": [_run(run, settings[run.setting], done[run.key]) for run in study.possible(done) if run.key in done],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(_lists_on_a_line(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)) + "\n")
    draft.replace(path)


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "about": setting.about,
        "preset": setting.preset,
        "options": setting.options,
        "target": setting.target,
        "metric": setting.metric,
        "rates-of": setting.rates_of.name if setting.rates_of else "",
        **({"shares": setting.shares} if setting.rates_of else {}),
        **({"level": setting.level()} if setting.level else {}),
        "methods": {method.name: method.options for method in setting.methods},
    }


def _search(study: Study, setting: Setting, method: Method, done: dict[str, Measured]) -> dict[str, Any]:
    """`scores` are by rate; null for a run that failed."""
    return {
        "setting": setting.name,
        "method": method.name,
        "option": method.searched,
        "grid": study.grid(setting, method, done),
        "tied": method.tied,
        "scores": {str(rate): score for rate, score in study.scores(setting, method, done).items()},
        "chosen": study.chosen(setting, method, done),
        "by": setting.rule,
    }


def _run(run: Run, setting: Setting, measured: Measured) -> dict[str, Any]:
    """What the run was, what follows from its numbers, and the numbers."""
    failed, values = bool(measured["error"]), measured[setting.metric]
    sign = -1 if setting.metric == LOSS else 1
    reached = (n for n, value in enumerate(values) if n and value is not None and sign * value >= sign * setting.target)
    return {
        "setting": run.setting,
        "method": run.method,
        "seed": run.seed,
        "rate": run.rate,
        "preset": run.preset,
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


def _lists_on_a_line(text: str) -> str:
    """Lists of numbers on one line each, so that a run takes few lines."""
    return re.sub(r"\[\s+([-\d.,\snule+]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)

"""The JSON file of a study: what it declares, and one line for every run with what was measured and on what.

The file is also the memory of the study: a run that is in it is not run again. What follows from these numbers is not
in it; see benchmarks.derived.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.study import Measured, Method, Run, Setting, Study, run_of

RESULTS = Path(__file__).parent.parent / "docs" / "results"
Content = dict[str, Any]  # of the file, or of a part of it


def load(path: Path) -> dict[str, Measured]:
    """Return what was measured, by run key; empty where there is no file."""
    return read(path)[1] if path.exists() else {}


def read(path: Path) -> tuple[Study, dict[str, Measured]]:
    """Return the study as the file declares it, and what was measured, by run key."""
    content = json.loads(path.read_text(encoding="utf-8"))
    study = _study(content)
    contests = {(setting.name, method.name): (setting, method) for setting, method in study.contests()}
    done = {}
    for line in content["runs"]:
        setting, method = contests[line["setting"], line["method"]]
        done[run_of(setting, method, line["seed"], line["rate"], line.get("held", {})).key] = line["measured"]
    return study, done


def save(path: Path, study: Study, done: dict[str, Measured]) -> None:
    """Write the whole file, so that a reader never sees half of it. Runs that no search can want are dropped."""
    content = {
        "study": study.name,
        "title": study.title,
        "about": study.about,
        "published": study.published,
        "reference": study.reference,
        "floor": study.floor,
        "extensions": study.extensions,
        "savings": study.savings,
        "seeds": study.seeds,
        "settings": [_declared(setting) for setting in study.settings],
        "runs": [_line(run, done[run.key]) for run in study.possible(done) if run.key in done],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(_written(content), encoding="utf-8")
    draft.replace(path)


def _declared(setting: Setting) -> Content:
    return {
        "name": setting.name,
        "about": setting.about,
        "preset": setting.preset,
        "options": setting.options,
        "rates": setting.rates,
        "target": setting.target,
        "metric": setting.metric,
        "level": setting.level() if setting.level else None,
        "rates-of": setting.rates_of.name if setting.rates_of else None,
        "shares": setting.shares,
        **({"holds": setting.holds.name, "searched": setting.searched} if setting.holds else {}),
        **({"search-only": True} if setting.search_only else {}),
        "methods": [vars(method) for method in setting.methods],
    }


def _line(run: Run, measured: Measured) -> Content:
    return {
        "setting": run.setting,
        "method": run.method,
        "seed": run.seed,
        "rate": run.rate,
        **({"held": run.held} if run.held else {}),
        "measured": measured,
    }


def _study(content: Content) -> Study:
    settings: dict[str, Setting] = {}
    for one in content["settings"]:
        settings[one["name"]] = _setting(one, settings)
    return Study(
        content["study"],
        content["title"],
        tuple(content["about"]),
        tuple(content["published"]),
        tuple(settings.values()),
        content["reference"],
        savings=content["savings"],
        seeds=tuple(content["seeds"]),
        floor=content["floor"],
        extensions=content.get("extensions", 0),  # 0: measured before grids were extended
    )


def _setting(content: Content, earlier: dict[str, Setting]) -> Setting:
    level = content["level"]
    return Setting(
        content["name"],
        content["about"],
        content["options"],
        tuple(Method(**{**one, "rates": tuple(one["rates"])}) for one in content["methods"]),
        {tuning: tuple(rates) for tuning, rates in content["rates"].items()},
        content["target"],
        preset=content["preset"],
        metric=content["metric"],
        level=(lambda: (level[0], level[1])) if level else None,
        rates_of=earlier[content["rates-of"]] if content["rates-of"] else None,
        shares=tuple(content["shares"]),
        holds=earlier[content["holds"]] if "holds" in content else None,
        searched=content.get("searched", ""),
        search_only=content.get("search-only", False),
    )


def _written(content: Content) -> str:
    """As JSON, with a line for every value, and for every setting and run."""
    return "{\n" + ",\n".join(f"{_compact(name)}: {_value(value)}" for name, value in content.items()) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_compact, value)) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

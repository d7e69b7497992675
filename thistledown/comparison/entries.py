"""What is compared: presets, overrides, and results folders, all with the same split.

An entry is the settings of a federation without its seed. Results folders whose settings differ only in the seed are
one entry.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server_app.config import RunConfig
from server_app.results.endings import COMPLETED, FAILED, SUMMARY, summary_of
from server_app.resuming import settings_of
from task.schema import ConfigError
from thistledown.settings import Settings, check_simulated, pairs

SEED = "seed"
OF_A_MACHINE = ("output-dir", "resume", "resume-from", "simulation.num-cpus", "simulation.num-gpus", "trackers")
FILLED = ("data.labels", "data.date", "data.template")  # a run fills them in
SHARED = ("task.kind", "evaluate", "simulation.num-supernodes")  # with all of [data]: what makes scores comparable


@dataclass(frozen=True)
class Entry:
    """One side of a comparison. `finished` are results folders by seed; other seeds are to be run with `values`."""

    name: str
    values: Mapping[str, Any]  # effective run-config keys
    finished: Mapping[int, Path] = field(default_factory=dict)

    def values_of(self, seed: int) -> dict[str, Any]:
        """Return the settings of a run with this seed."""
        return {**self.values, SEED: seed}

    @property
    def config(self) -> RunConfig:
        """Return the settings, read."""
        return RunConfig.read(self.values)


def entries(texts: Sequence[str], overrides: Sequence[str], here: Path) -> list[Entry]:
    """Return the entries that these texts name; `overrides` go for all of them but finished runs.

    Raises ConfigError for texts that name nothing, and for entries that do not share their split.
    """
    found: list[Entry] = []
    problems: list[str] = []
    for text in texts:
        try:
            found.append(_entry(text, overrides, here))
        except ConfigError as error:
            problems += [f"{text}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    whole = _merged(found)
    if problems := [problem for other in whole[1:] for problem in _differences(whole[0], other)]:
        raise ConfigError(problems)
    names = [entry.name for entry in whole]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError([f"'{name}' is compared with itself; name each entry once" for name in twice])
    if problems := list(_equal([entry for entry in whole if not entry.finished])):
        raise ConfigError(problems)
    return whole


def differing(found: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return the keys in which entries differ, with the value of each."""
    keys = dict.fromkeys(key for entry in found for key in entry.values if key not in (*OF_A_MACHINE, *FILLED, SEED))
    values = {key: [entry.values.get(key) for entry in found] for key in keys}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def _entry(text: str, overrides: Sequence[str], here: Path) -> Entry:
    folder = here / Path(text).expanduser()
    if folder.is_dir():
        return _finished(text, folder)
    override = "=" in text and not folder.is_file()
    settings = Settings.read(None, None if override else text, [*overrides, *([text] if override else [])], here)
    check_simulated(settings.config)
    if settings.config.server.resume:
        raise ConfigError(["resume is for a single run; name its results folder to compare it"])
    alone = override and pairs([text]).keys() == {"strategy"}
    return Entry(settings.config.strategy.name if alone else text, settings.config.flat)


def _finished(text: str, folder: Path) -> Entry:
    if not (folder / SUMMARY).exists():
        raise ConfigError(["this folder has no results of a run"])
    try:
        status = summary_of(folder).get("status")
    except ValueError as error:
        raise ConfigError([f"its {SUMMARY} cannot be read: {error}"]) from error
    if status not in (COMPLETED, FAILED):
        raise ConfigError([f"this run is {status}; wait for its end, or resume it"])
    values = RunConfig.read(settings_of(folder)).flat
    return Entry(text, values, {int(values[SEED]): folder.resolve()})


def _merged(found: Sequence[Entry]) -> list[Entry]:
    """Return the entries, with finished runs that differ only in their seed as one."""
    whole: dict[object, Entry] = {}
    for number, entry in enumerate(found):
        key: object = _kept(entry) if entry.finished else number
        before = whole.get(key)
        if before is None or before.finished.keys() & entry.finished.keys():
            whole[key if before is None else (key, number)] = entry
        else:
            whole[key] = Entry(before.name, before.values, {**before.finished, **entry.finished})
    return list(whole.values())


def _equal(waiting: Sequence[Entry]) -> Iterator[str]:
    """Yield a problem for each entry to run that has the settings of one before it: both would have one folder."""
    names: dict[str, str] = {}
    for entry in waiting:
        before = names.setdefault(_kept(entry), entry.name)
        if before != entry.name:
            yield f"'{before}' and '{entry.name}' have the same settings, but for their seed; name one of them"


def _kept(entry: Entry) -> str:
    """Return the settings of an entry as far as they are its own."""
    kept = {key: value for key, value in entry.values.items() if key not in (*OF_A_MACHINE, *FILLED, SEED)}
    return repr(sorted(kept.items()))


def _differences(first: Entry, other: Entry) -> list[str]:
    """Return a problem for each key that makes two entries incomparable."""
    partitioner = first.config.task.data.partitioner
    tables = ("data.", f"{partitioner.table or partitioner.name}.")
    keys = {key for key in {**first.values, **other.values} if key.startswith(tables) or key in SHARED}
    return [
        f"'{first.name}' has {key} = {first.values.get(key)!r}, and '{other.name}' {other.values.get(key)!r}: only "
        "runs over the same split are comparable; give both the same by -c"
        for key in sorted(keys - set(FILLED))
        if first.values.get(key) != other.values.get(key)
    ]

"""Resuming an earlier run in its results folder: with its configuration, after its last checkpoint.

Flower fills in defaults before the app sees the run config, so a key at its default counts as not given.
"""

import fcntl
import json
import logging
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from server_app.callbacks import tracker
from server_app.config import keys
from server_app.results import started
from server_app.results.endings import METRICS, at_work
from server_app.results.started import CONFIG, FROM, RESUME, flat
from strategies.protocol import checkpoint
from strategies.rounds.run_state import RunState
from task.modes import as_the_folder
from task.schema import ConfigError, Option, Schema

LOG = logging.getLogger("flwr")
ROUNDS = "num-server-rounds"
# Keys that may change when a run is resumed: none of them changes what a round computes from its updates.
FREE = (
    RESUME, FROM, ROUNDS, "output-dir", "device", "server-device", "round-timeout", "node-wait-timeout",
    "min-available-nodes", "min-success-fraction", "max-failed-rounds", "evaluate-every", "simulation.num-cpus",
    "simulation.num-gpus", "outlier-factor", "collapse-factor", "examine-rows", "keep-checkpoints",
    "early-stopping.patience", "early-stopping.min-delta", "early-stopping.target", "early-stopping.metric", "trackers",
)  # fmt: skip
LAST = "last"


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run; only free keys may have been edited since. Raises ConfigError."""
    try:
        found = flat(tomllib.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except OSError as error:
        said = f"{CONFIG} in it cannot be read: {error.strerror}"
        raise ConfigError([f"{folder} is not a results folder: {said}"]) from error
    except ValueError as error:
        raise ConfigError([f"{folder} is not a results folder: its {CONFIG} is no TOML: {error}"]) from error
    if edited := _edited(found, started.kept(folder), folder / CONFIG):
        raise ConfigError(edited)
    return found


def _edited(found: Mapping[str, Any], kept: Mapping[str, Any] | None, path: Path) -> list[str]:
    """Return a problem for every key that was edited although it may not change."""
    known, before, free = keys(), kept or {}, _free_keys()
    there = [key for key in {**before, **found} if key in known and key not in free] if kept is not None else []
    pairs = {key: tuple(side.get(key, known[key].default) for side in (found, before)) for key in there}
    return [
        f"{path}: {key} = {now!r}, but the run was started with {then!r}; restore that value or start a new run"
        for key, (now, then) in pairs.items()
        if not _same(known[key], now, then)
    ]


def _free_keys() -> set[str]:
    """Return the keys that may change when a run is resumed."""
    return {*FREE, *tracker.option_keys()}


def given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a run config that differ from their defaults, and unknown keys."""
    known = keys()
    return {key: value for key, value in config.items() if key not in known or not _same(known[key], value)}


def continued(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the run to resume, with the `chosen` free keys; without `resume`, return `chosen`.

    Raises ConfigError for every other chosen key that differs from the earlier run, and if no round is left to do.
    """
    if not chosen.get(RESUME):
        return dict(chosen)
    folder = Path(str(chosen[RESUME]))
    if not folder.is_absolute():
        raise ConfigError([f"resume = '{folder}' must be an absolute path"])
    old, known, free = settings_of(folder), keys(), _free_keys()
    problems = [
        f"{key} = {value!r}, but the run to resume has {old[key]!r}"
        for key, value in chosen.items()
        if key in old and key not in free and not _same(known[key], value, old[key])
    ]
    settings = old | {key: value for key, value in chosen.items() if key in free or key not in old}
    if problems := problems or _nothing_left(folder, old, settings, known):
        raise ConfigError(problems)
    return settings


def _same(option: Option, one: object, *others: object) -> bool:
    """Return whether a value of a key equals another value, or the default. Unreadable values are never equal."""
    try:
        return bool(option.parse(one) == (option.parse(others[0]) if others else option.default))
    except ValueError:
        return False


def _nothing_left(folder: Path, old: Mapping[str, Any], settings: Mapping[str, Any], known: Schema) -> list[str]:
    wanted, before = settings.get(ROUNDS, known[ROUNDS].default), old.get(ROUNDS, known[ROUNDS].default)
    if type(wanted) is not int:
        return []  # reported where types are checked
    if wanted < before:
        return [f"{ROUNDS} = {wanted}, but the run to resume has {before}; choose at least as many"]
    done = rounds_done(folder, str(settings.get(FROM, LAST)))
    if done >= wanted:
        return [f"nothing left to do: all {done} rounds of {folder} are over; for more, set {ROUNDS} above {done}"]
    return []


def rounds_done(folder: Path, which: str = LAST) -> int:
    """Return the round of the checkpoint `which`: `last`, `best` or the number of a round. Raises ConfigError."""
    path = folder / "checkpoints" / _named(which)
    if which != LAST and not path.exists():
        there = sorted(int(kept.stem.removeprefix("round-")) for kept in path.parent.glob(checkpoint.kept("*")))
        choice = ", ".join(["last", "best", *map(str, there)])
        raise ConfigError([f"{FROM} = '{which}': there is no {path}; this run has {choice}"])
    try:
        return int(checkpoint.about(path)["round"])
    except checkpoint.Damaged as error:
        raise ConfigError([f"cannot resume: {error}; {checkpoint.OTHERS}"]) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError([f"cannot resume from {path}: {error}"]) from error


def go_back(folder: Path, which: str) -> None:
    """Make an earlier checkpoint the one to resume from.

    What a run must never lose, such as the privacy budget that was spent, stays as it was after the last round. The
    lines of later rounds are saved in `metrics-until-<round>.jsonl`. Raises ConfigError.
    """
    if which == LAST:
        return
    place = folder / "checkpoints"
    done, last = rounds_done(folder, which), rounds_done(folder)
    try:
        state, _ = checkpoint.load(place / _named(which))
        about = checkpoint.about(place / checkpoint.LAST)
        run_state = replace(RunState.read(about), round=done, failures=0, sinking=0, usual=[], senders={})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError([f"cannot go back to {place / _named(which)}: {error}"]) from error
    run_state.good = [good for good in run_state.good if good["round"] <= done]
    shutil.copy(folder / METRICS, folder / f"metrics-until-{last}.jsonl")
    checkpoint.save(place / checkpoint.LAST, state, about | {"round": done} | run_state.about())
    LOG.info("went back from round %d to the state of round %d", last, done)


def _named(which: str) -> str:
    """Return the file name of the checkpoint `which`."""
    return {LAST: checkpoint.LAST, "best": checkpoint.BEST}.get(which, checkpoint.kept(which))


def lines_until(folder: Path, last: int) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl of rounds 0 to `last`, and cut off what follows, perhaps half a line.

    Raises ConfigError if a line is missing.
    """
    path = folder / METRICS
    lines: list[dict[str, Any]] = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines()[: last + 1]:
            lines.append(json.loads(text))
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path} cannot be read up to round {last}: {error}"]) from error
    if [line.get("round") for line in lines] != list(range(last + 1)):
        raise ConfigError([f"{path} lacks rounds up to {last}, which the checkpoint has"])
    draft = folder / f".{METRICS}"
    draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    as_the_folder(draft)
    draft.replace(path)
    return lines


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock the results folder, so that no other process writes to it. The system releases the lock of a dead process.

    Raises ConfigError if another process has the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError([at_work(folder)]) from error
        except OSError as error:
            LOG.warning("%s cannot be locked (%s): make sure that no other process resumes it", folder, error.strerror)
        yield
    finally:
        os.close(handle)

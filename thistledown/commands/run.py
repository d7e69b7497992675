"""`thistledown run`: one simulated run on its own SuperLink, from the checked settings to the summary."""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tomli_w

from server_app.outputs import writable
from server_app.results.endings import COMPLETED, at_work, hint, interrupt, interrupted_in, locked
from server_app.results.measure import measure_of
from server_app.results.started import nested
from server_app.resuming import rounds_done
from task.schema import ConfigError
from task.storage.room import append, room
from thistledown.bar import bar
from thistledown.console import ANSI, Console
from thistledown.foretold.machine import machine
from thistledown.processes.client import SuperLinkError
from thistledown.processes.superlink import SuperLink
from thistledown.rounds import Rounds
from thistledown.settings import Settings, check_simulated
from thistledown.summary import headline, summary_lines

Say = Callable[[str], None]
Update = Callable[[float], None]  # shows the rounds so far, and the seconds that are left
FINISHED = "finished:completed"
STRAY = 20  # lines of Flower's own output that are shown


class Running(Protocol):
    """A SuperLink that runs were submitted to."""

    def check(self) -> None:
        """Raise SuperLinkError if one of Flower's programs has ended by itself."""

    def status(self, run_id: str) -> tuple[str, str]:
        """Return Flower's status of a run and its details."""

    def tail(self, lines: int = 20) -> str:
        """Return the end of the SuperLink's own log."""


Place = TypeVar("Place", bound=Running)


def run(settings: Settings, say: Say, *, verbose: bool = False) -> bool:
    """Simulate the run and return whether it completed. No process keeps running, however the run ends.

    Raises ConfigError for a configuration that cannot be simulated, SuperLinkError if Flower does not start or answer.
    """
    server = settings.config.server
    check_simulated(settings.config)
    say(headline(settings.config))
    for line in machine(settings.config):
        say(line)
    done = resumed_after(settings, say)
    for dead in interrupted_in(Path(server.output_dir)):
        say(f"the run in {dead} was interrupted; {hint(dead) or 'it has no checkpoint to resume from'}")
    say("starting Flower's SuperLink")
    return followed(settings, SuperLink, partial(_submitted, settings), say, verbose=verbose, done=done)


def resumed_after(settings: Settings, say: Say) -> int:
    """Return the last round of the run that is resumed, and say so; -1 if none is. Raises ConfigError if it still
    works."""
    server = settings.config.server
    if not server.resume:
        return -1
    if locked(Path(server.resume)):
        raise ConfigError([at_work(Path(server.resume))])
    done = rounds_done(Path(server.resume), server.resume_from)
    say(f"resuming {server.resume} after round {done}")
    return done


def followed(
    settings: Settings,
    start: Callable[[], AbstractContextManager[Place]],
    submit: Callable[[Place], "subprocess.Popen[str]"],
    say: Say,
    *,
    verbose: bool = False,
    done: int = -1,
) -> bool:
    """Start a SuperLink, submit the run to it, show its rounds from `done` + 1 on, and return whether it completed."""
    log = Log(Path(settings.config.server.output_dir))
    console = Console(verbose=verbose)
    measure, total = measure_of(settings.config.task), settings.config.server.num_server_rounds
    rounds = Rounds(measure.titles, total, done + 1)
    try:
        with log, start() as superlink:  # which makes a folder, so that nothing may come between
            with bar(0 if verbose else total) as below:
                update = partial(below.show, rounds.lines, measure.metric)
                code = _follow(submit(superlink), console, rounds, log, say, update)
            superlink.check()
            status, details = superlink.status(console.run_id) if console.run_id else ("", "")
            if status != FINISHED:
                log.write(f"\n--- the SuperLink's own log\n{superlink.tail(200)}\n")
    except (KeyboardInterrupt, SystemExit, SuperLinkError):
        _say_interrupted(console, say)
        raise
    summary = _summary(console.folder)
    if status == FINISHED and summary.get("status") == COMPLETED:
        for line in summary_lines(summary):
            say(line)
        return True
    say(f"the run failed: {_cause(summary, console, details, code)}")
    _say_interrupted(console, say)
    say(f"the whole log is in {log.path}")
    return False


def _say_interrupted(console: Console, say: Say) -> None:
    """Print where the results of an incomplete run are and how to resume it, and mark the run in its folder."""
    if not console.folder:
        return
    folder = Path(console.folder)
    interrupt(folder)
    say(f"the results so far are in {folder}")
    if how := hint(folder):
        say(how)


class Log:
    """The complete log of a run, on disk from the first line. It moves to the results folder once that exists."""

    def __init__(self, outputs: Path) -> None:
        with writable(outputs):
            outputs.mkdir(parents=True, exist_ok=True)
        self.path = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06}.log"
        with writable(outputs):
            self._file = self.path.open("ab", buffering=0)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        empty = not os.fstat(self._file.fileno()).st_size  # not by its name, which an interrupted move may have changed
        self._file.close()
        if empty:
            self.path.unlink(missing_ok=True)

    def write(self, line: str) -> None:
        """Append a line without its colours."""
        with room(self.path.parent):
            append(self._file, ANSI.sub("", line))

    def move(self, folder: Path) -> None:
        """Move the log to `run.log` in this folder, or to `run-2.log` and so on for a resumed run."""
        names = itertools.chain(["run.log"], (f"run-{number}.log" for number in itertools.count(2)))
        self.path = self.path.rename(next(path for name in names if not (path := folder / name).exists()))


def _submitted(settings: Settings, superlink: SuperLink) -> "subprocess.Popen[str]":
    config, simulation = settings.config, settings.config.server.simulation
    values = tomli_w.dumps(nested(config.flat))
    return superlink.submit(settings.app, values, simulation.num_supernodes, simulation.num_cpus, simulation.num_gpus)


def _follow(
    process: "subprocess.Popen[str]", console: Console, rounds: Rounds, log: Log, say: Say, update: Update
) -> int:
    """Read the log to its end and return the exit code of `flwr run`, which does not depend on the run's success."""
    assert process.stdout is not None
    found = False
    for line in process.stdout:
        log.write(line)
        for shown in console.read(line):
            say(shown)
        if console.folder and not found:
            found = True
            log.move(Path(console.folder))
        _say_rounds(console, rounds, say)
        update(rounds.left)
    _say_rounds(console, rounds, say, ended=True)
    for shown in console.end():
        say(shown)
    return process.wait()


def _say_rounds(console: Console, rounds: Rounds, say: Say, *, ended: bool = False) -> None:
    """Print the rounds that have ended, unless the whole log is shown, which has them already."""
    if console.folder and not console.verbose:
        for shown in rounds.new(Path(console.folder), ended=ended):
            say(shown)


def _summary(folder: str) -> dict[str, Any]:
    path = Path(folder, "summary.json")
    if not folder or not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _cause(summary: dict[str, Any], console: Console, details: str, code: int) -> str:
    """Return the cause of a failure from the ServerApp, else from the log, else from Flower."""
    if not console.run_id:
        return f"Flower did not accept it (exit code {code}):\n" + "\n".join(console.stray[-STRAY:])
    return str(summary.get("error") or console.cause or details)

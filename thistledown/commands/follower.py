"""What a run shows on the terminal while it goes on, from its log and metrics.jsonl, and when it ends."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server_app.config import RunConfig
from server_app.outputs import writable
from server_app.results.endings import COMPLETED, hint, interrupt, summary_of
from server_app.results.measure import measure_of
from task.storage.room import append, room
from thistledown.bar import Bar, bar
from thistledown.console import ANSI, Console
from thistledown.rounds import Rounds
from thistledown.summary import summary_lines

Say = Callable[[str], None]


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


class Follower:
    """Shows a run from the lines of its log, and its rounds from `done` + 1 on. `log` has all lines."""

    def __init__(self, config: RunConfig, say: Say, *, verbose: bool, done: int) -> None:
        self._say = say
        self._console = Console(verbose=verbose)
        measure, self._total = measure_of(config.task), config.server.num_server_rounds
        self._metric = measure.metric
        self._rounds = Rounds(measure.titles, self._total, done + 1)
        self._below = Bar()
        self._moved = False
        self.log = Log(Path(config.server.output_dir))

    @property
    def run_id(self) -> str:
        """Return Flower's id of the run, empty before Flower accepts it."""
        return self._console.run_id

    @property
    def begun(self) -> bool:
        """Return whether the run has its results folder."""
        return bool(self._console.folder)

    def stray(self, lines: int) -> str:
        """Return the last lines before Flower accepted the run."""
        return "\n".join(self._console.stray[-lines:])

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show the bar of the run below its lines within this block."""
        with bar(0 if self._console.verbose else self._total) as self._below:
            yield

    def read(self, line: str) -> None:
        """Show what is new with the next line of the log."""
        self.log.write(line)
        for shown in self._console.read(line):
            self._say(shown)
        if self._console.folder and not self._moved:
            self._moved = True
            self.log.move(Path(self._console.folder))
        self._say_rounds()
        self._below.show(self._rounds.lines, self._metric, self._rounds.left)

    def end(self) -> None:
        """Show what is left after the last line of the log."""
        self._say_rounds(ended=True)
        for shown in self._console.end():
            self._say(shown)

    @contextmanager
    def interruptions(self, *errors: type[Exception]) -> Iterator[None]:
        """Say what is left of the run if a signal, or one of these errors, ends this block."""
        ends: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, *errors)
        try:
            yield
        except ends:
            self._say_interrupted()
            raise

    def concluded(self, problem: str) -> bool:
        """Print how the run ended, and return whether it completed. `problem`: what ended it, if it is known not to be
        the run itself that says so."""
        summary = summary_of(Path(self._console.folder)) if self._console.folder else {}
        if not problem and summary.get("status") == COMPLETED:
            for line in summary_lines(summary):
                self._say(line)
            return True
        self._say(f"the run failed: {summary.get('error') or self._console.cause or problem}")
        self._say_interrupted()
        self._say(f"the whole log is in {self.log.path}")
        return False

    def _say_rounds(self, *, ended: bool = False) -> None:
        """Print the rounds that have ended, unless the whole log is shown, which has them already."""
        if self._console.folder and not self._console.verbose:
            for shown in self._rounds.new(Path(self._console.folder), ended=ended):
                self._say(shown)

    def _say_interrupted(self) -> None:
        """Print where the results of an incomplete run are and how to resume it, and mark the run in its folder."""
        if not self._console.folder:
            return
        folder = Path(self._console.folder)
        interrupt(folder)
        self._say(f"the results so far are in {folder}")
        if how := hint(folder):
            self._say(how)

"""Trackers: they receive the metrics of a run, such as TensorBoard. Each is one file in `trackers/`."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from server_app.callbacks import trackers
from server_app.results.lines import line_of, row_of
from server_app.results.measure import measure_of
from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.types import State
from task import extensions
from task.schema import Flat, Schema, option, schema

Log = Callable[[dict[str, float]], None]  # takes the metrics of a round, including "round"
ARTIFACTS = "log the report, the settings, the rounds and the best model at the end, too"  # of options that ask for it
KEPT = ("report.html", "config.toml", "metrics.jsonl", "model/best")  # in a results folder, whose modules import this
REPORTED = "server-round"  # in the metrics of a node: no measurement
PACKAGE = trackers.__name__
STRANGE = re.compile(r"[^\w .:-]", re.ASCII)  # signs that not every tracker takes in a name


@dataclass(frozen=True)
class Tracker(ABC):
    """A destination for the metrics of a run; the fields made by `task.schema.option` are its options."""

    package: ClassVar[str] = ""  # package it needs, by the name for pip and import; empty: none
    nodes: bool = option(False, doc="log the metrics of every node, too, by its name")

    @property
    def name(self) -> str:
        """Return the tracker's name, which is the name of its file."""
        return extensions.name_of(type(self))

    @abstractmethod
    def opened(self, folder: Path, settings: Flat) -> AbstractContextManager[Log]:
        """Return a context manager that is entered when the run starts and exited when it ends, with its error if any.

        `folder` is the results folder, `settings` are the run-config keys of strategy and task. The context manager
        yields a function that is called once per round with the round's metrics. After the yield, the results folder
        is complete: see `artifacts`. A resumed run opens the tracker again in the same folder.
        """

    def problems(self) -> Iterator[str]:
        """Return what this machine lacks to run the tracker."""
        if self.package and find_spec(self.package) is None:
            yield (
                f"trackers: '{self.name}' needs the package {self.package}, which is not installed where the server "
                f"runs: pip install {self.package}"
            )


class Tracking(Callback):
    """Passes the metrics of a run to a tracker."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self._tracker, self._folder = tracker, folder
        self._open = ExitStack()
        self._log: Log | None = None

    @property
    def name(self) -> str:
        """Return the tracker's name."""
        return self._tracker.name

    def on_start(self, facts: RunFacts) -> None:
        """Open the tracker."""
        self._measure = measure_of(facts.config)
        self._log = self._open.enter_context(self._tracker.opened(self._folder, facts.settings))

    def on_round(self, report: RoundReport, state: State) -> None:
        """Log the metrics of the round, unless the tracker could not be opened."""
        if self._log is not None:
            line = line_of(report, self._measure)
            row = row_of(line) | (of_nodes(line) if self._tracker.nodes else {})
            self._log({name: value for name, value in row.items() if isinstance(value, int | float)})

    def on_end(self, error: BaseException | None) -> None:
        """Close the tracker."""
        if error is None:
            self._open.close()
        else:
            self._open.__exit__(type(error), error, error.__traceback__)


def of_nodes(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of single nodes in a line of metrics.jsonl, as `node/<name>/train/<metric>` and, of their
    evaluations, `node/<name>/<metric>`. Nodes whose reply was refused have none."""
    parts = (("nodes", "train/"), ("evaluations", ""))
    return {
        f"node/{STRANGE.sub('_', node['node'])}/{prefix}{name}": value
        for part, prefix in parts
        for node in line.get(part, ())
        if not node["refused"]
        for name, value in node["metrics"].items()
        if name != REPORTED
    }


def artifacts(folder: Path) -> Iterator[Path]:
    """Yield the files and folders of a complete results folder that trackers may keep; a run may lack some."""
    return (path for name in KEPT if (path := folder / name).exists())


def names() -> list[str]:
    """Return the names of all trackers."""
    return extensions.names(PACKAGE)


def tracker_class(name: str) -> type[Tracker]:
    """Return the class of a tracker. Raises ConfigError."""
    return extensions.load(PACKAGE, name, Tracker)  # type: ignore[type-abstract]


def option_keys() -> Schema:
    """Return the options of all trackers as `<name>.<option>` keys."""
    keys: Schema = {}
    for name in names():
        keys |= schema(tracker_class(name), f"{name}.")
    return keys

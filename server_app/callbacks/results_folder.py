"""The results folder: what a run leaves, written as it goes so that a failure loses nothing.

config.toml       the effective configuration; `thistledown run <this file>` repeats the run
metrics.jsonl     one line a round: quality, loss, bytes each way, seconds, every node
summary.json      how it ended
report.html       plots
model/            last, best and, for an adapter, the base it belongs to
checkpoints/      the newest and the best state
"""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w
import torch

from server_app.callbacks.progress import progress
from server_app.config import RunConfig
from server_app.results import started
from server_app.results.endings import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    METRICS,
    REPORT,
    RUNNING,
    can_resume,
    hint,
    summary_of,
    write_summary,
)
from server_app.results.learning import not_falling
from server_app.results.lines import VOID, line_of, written_json
from server_app.results.measure import measure_of
from server_app.results.report import write_report
from server_app.results.tuned import write_tuned
from server_app.resuming import CONFIG, FROM, RESUME, go_back, lines_until, rounds_done
from strategies.exchange.federation import RoundReport
from strategies.exchange.types import RunFailed, State
from strategies.protocol import checkpoint
from task.config import TaskConfig
from task.modes import as_the_folder
from task.schema import flatten
from task.storage.room import append

LOG = logging.getLogger("flwr")
LABELS, DATE = "data.labels", "data.date"  # what a run fills in


class Results:
    """Writes the folder of one run; a context manager, so that the summary is written however it ends."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.folder, self.run = folder, run
        self.checkpoints = folder / "checkpoints"
        self.rounds: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.resumed: list[int] = []  # the rounds after which other processes went on
        self.began = time.monotonic()
        self._over: list[float] = []  # when each round of this process was
        self._task = run.task
        self.measure = measure_of(run.task)
        self._last: State | None = None
        self.stopped = ""  # why the run ended before its last round, if so
        self.notices: list[str] = []  # what is said of the run without being asked
        self._slow = False  # has it been said that the training loss does not fall?
        self.usage: list[str] = []  # lines of Python that load the best model
        if run.server.resume:
            self._resume()
        self._write_config(run.flat)

    def _resume(self) -> None:
        """Stand where an earlier process stood after its last checkpoint. Raises ConfigError."""
        go_back(self.folder, self.run.server.resume_from)
        done, before = rounds_done(self.folder), summary_of(self.folder)
        self.rounds = lines_until(self.folder, done)
        self.resumed = [*before.get("resumed", []), done]
        self.began -= before.get("seconds", 0.0)
        for line in self.rounds:
            self._compare(line)
        best = self.checkpoints / checkpoint.BEST
        there = checkpoint.about(best)["round"] if best.exists() else None
        if self.best is not None and self.best["round"] != there:
            # the process ended before it kept this one, or the run went back to before the one that is there
            self.best = self.rounds[-1] if self.rounds[-1].get("chosen-by") is not None else None
            checkpoint.save(best, checkpoint.load(self.checkpoints / checkpoint.LAST)[0], {"round": done})

    def __enter__(self) -> "Results":
        self._summarise(RUNNING)  # what a run that is killed before its first round leaves
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):  # a signal, or Ctrl-C
            self._end(INTERRUPTED)
            return
        if error is not None:
            self._salvage(error)
            self._end(FAILED, str(error) or repr(error))
            return
        try:
            self._export()
        except Exception as failure:
            self._end(FAILED, f"the tuned model could not be written: {failure}")
            raise
        self._end(COMPLETED)

    def _salvage(self, error: BaseException) -> None:
        """Write the model that the good rounds of a failed run left."""
        if isinstance(error, RunFailed) and any(not line["failed"] for line in self.rounds[1:]):
            try:
                self._export()
            except Exception as failure:  # noqa: BLE001 - the run's own failure is what counts
                LOG.warning("the tuned model of the rounds before could not be written: %s", failure)

    def _end(self, status: str, error: str = "") -> None:
        if error:
            LOG.error("the run failed: %s", error)
        try:
            self._write_end(status, error)
        except OSError as failure:
            if not error:
                raise
            LOG.error("the summary still says how the run stood after its last round: %s", failure)

    def _write_end(self, status: str, error: str) -> None:
        summary = self._summarise(status, error)
        write_report(self.folder / REPORT, summary, self.rounds, self.measure.titles)
        if status == COMPLETED:
            LOG.info("finished in %.0f s, results in %s", summary["seconds"], self.folder)
            if self.usage:
                LOG.info("the tuned model, in Python:\n%s", "\n".join(self.usage))
        elif can_resume(self.folder):
            LOG.info("%s", hint(self.folder))

    def notice(self, notices: Iterable[str]) -> None:
        """Say these once, now and in the summary."""
        for notice in notices:
            if notice not in self.notices:
                LOG.warning("%s", notice)
                self.notices.append(notice)

    def begin(self, task: TaskConfig) -> None:
        """The settings as the data completed them."""
        self._task = task
        filled = flatten(task)
        self._write_config(self.run.flat | {key: filled[key] for key in (LABELS, DATE) if filled[key]})

    def on_round(self, report: RoundReport, state: State) -> None:
        """Append the round's line, and say how far the run is."""
        line = line_of(report, self.measure)
        self.rounds.append(line)
        with (self.folder / METRICS).open("ab", buffering=0) as file:
            append(file, written_json(line) + "\n")
            os.fsync(file.fileno())  # before the checkpoint that counts on it
        self._compare(line)
        self._last = state
        self._over.append(time.monotonic())
        self.stopped = report.stopped if report.number < self.run.server.num_server_rounds else ""
        LOG.info("%s", progress(line, self.measure.titles, self.run.server.num_server_rounds, self._over))
        if not self._slow and (slow := not_falling(self.rounds, self._task, self.measure)):
            self._slow = True
            self.notice([slow])
        self._summarise(RUNNING)  # what a run that is killed leaves

    def on_kept(self, report: RoundReport, state: State) -> None:
        """Keep the state if it is the best so far. It comes after the newest one is kept, so that a round which is done
        again, and may end in other bits, cannot have replaced an older best."""
        if self.best is self.rounds[-1]:
            checkpoint.save(self.checkpoints / checkpoint.BEST, state, {"round": report.number})

    def _compare(self, line: dict[str, Any]) -> None:
        chosen_by = line.get("chosen-by")
        if chosen_by is not None and (self.best is None or self.measure.better(chosen_by, self.best["chosen-by"])):
            self.best = line

    def summary(self, status: str, error: str = "") -> dict[str, Any]:
        """How the run stands. `base`, `final`, `best` are on the part that is reported."""
        metric = self.measure.metric
        first, last = (self.rounds[0], self.rounds[-1]) if self.rounds else ({}, {})
        # A round that was not evaluated has no quality, nor has one where nodes score and none answers well.
        scored: dict[str, Any] = next((entry for entry in reversed(self.rounds) if metric in entry), {})
        void = {entry["round"]: entry[VOID] for entry in self.rounds if VOID in entry}
        back = {entry["round"]: entry["rolled-back"] for entry in self.rounds if "rolled-back" in entry}
        nodes = {line["node"]: line["rank"] for entry in self.rounds for line in entry["nodes"]}
        return {
            "status": status,
            **({"error": error} if error else {}),
            **({"stopped": self.stopped} if self.stopped else {}),
            "strategy": self.run.strategy.name,
            "tuning": self.run.task.tuning,
            "seed": self.run.task.seed,
            "metric": metric,
            "metric-source": self._source(),
            "base": first.get(metric),
            "final": scored.get(metric),
            "best": (self.best or {}).get(metric),
            "best-round": (self.best or {}).get("round"),
            "best-chosen-by": (self.best or {}).get("chosen-by"),
            **({"void-rounds": void} if void else {}),
            "rounds": last.get("round", 0),
            **({"resumed": self.resumed} if self.resumed else {}),
            "failed-rounds": sum(bool(entry["failed"]) for entry in self.rounds),
            **({"rolled-back": back} if back else {}),
            "ranks": nodes,
            **{name: last[name] for name in ("epsilon", "delta", "accountant") if name in last},
            "parameters": last.get("parameters", 0),
            "bytes_up": sum(entry["bytes_up"] for entry in self.rounds),
            "bytes_down": sum(entry["bytes_down"] for entry in self.rounds),
            "bytes_base": sum(entry["bytes_base"] for entry in self.rounds),
            "parameters_up": sum(entry["parameters_up"] for entry in self.rounds),
            "parameters_down": sum(entry["parameters_down"] for entry in self.rounds),
            "seconds": round(time.monotonic() - self.began, 3),
            "threads": torch.get_num_threads(),
            "folder": str(self.folder),
            **({"notices": self.notices} if self.notices else {}),
            **({"usage": self.usage} if self.usage else {}),
        }

    def _write_config(self, flat: Mapping[str, Any]) -> None:
        kept = {key: value for key, value in flat.items() if key not in (RESUME, FROM)}
        draft = self.folder / f".{CONFIG}"
        draft.write_text(tomli_w.dumps(nested(kept)), encoding="utf-8")
        as_the_folder(draft)
        draft.replace(self.folder / CONFIG)
        started.keep(self.folder, kept)

    def _summarise(self, status: str, error: str = "") -> dict[str, Any]:
        summary = self.summary(status, error)
        write_summary(self.folder, summary)
        return summary

    def _source(self) -> str:
        if self._task.evaluate == "nodes":
            source = "nodes: mean over the rows they hold out; the best round is chosen on the same rows"
        else:
            source = "server: test part; the best round is chosen on the validation part"
        return f"{source}, by the {self.measure.rule}" if self.measure.lowest else source

    def _export(self) -> None:
        """The tuned model, last and best."""
        if self._last is None:
            return
        last = (self.rounds[-1]["round"], self._last)
        best = last
        if self.best is not None:
            best = self.best["round"], checkpoint.load(self.checkpoints / checkpoint.BEST)[0]
        states, nodes = {"last": last, "best": best}, len(self.summary(RUNNING)["ranks"])
        self.usage = write_tuned(self.run, self._task, states, self.folder / "model", nodes)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as tables, plain keys first, as TOML wants them."""
    tables: dict[str, Any] = {key: value for key, value in flat.items() if "." not in key}
    for key, value in flat.items():
        if "." in key:
            table, name = key.split(".", 1)
            tables.setdefault(table, {})[name] = value
    return tables

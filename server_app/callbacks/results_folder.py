"""The results folder of a run. It is written during the run, so a failure loses nothing.

config.toml       the effective configuration; `thistledown run <this file>` repeats the run
metrics.jsonl     one line per round: quality, loss, bytes each way, seconds, every node
summary.json      how it ended
generations.jsonl sample prompts, references and answers, with evaluate-generations
predictions.jsonl sample rows, their labels and predictions, with report-predictions
report.html       all of it as a page
split.json        training rows of simulated nodes by class
model/            last, best and, for an adapter, its base
checkpoints/      the newest and the best state
"""

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from server_app.config import RunConfig
from server_app.results import started
from server_app.results.endings import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    METRICS,
    can_resume,
    hint,
    summary_of,
    write_summary,
)
from server_app.results.history import History
from server_app.results.learning import not_falling
from server_app.results.lines import line_of, written_json
from server_app.results.measure import measure_of
from server_app.results.recorded import Recorded
from server_app.results.report import RUNNING, write_report
from server_app.results.tuned import write_tuned
from server_app.resuming import go_back, lines_until, rounds_done
from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.types import RunFailed, State
from strategies.protocol import checkpoint
from task.schema import flatten
from task.storage.room import append, is_full, sentence
from task.versions import versions

LOG = logging.getLogger("flwr")
FILLED = ("data.labels", "data.date", "data.template")  # keys that a run fills in


class Results(Callback):
    """Writes the results folder of one run.

    As a context manager it also writes a summary for a run that ends before its callbacks are called.
    """

    essential = True

    def __init__(self, folder: Path, run: RunConfig, writes_model: bool = True) -> None:
        self.folder, self.run = folder, run
        self.checkpoints = folder / "checkpoints"
        self.measure = measure_of(run.task)
        self.history = History(self.measure)
        self.began = time.monotonic()
        self.stopped = ""  # why the run ended before its last round; empty if it did not
        self.notices: list[str] = []  # warnings about the run
        self.usage: list[str] = []  # lines of Python that load the best model
        self._task, self._writes_model = run.task, writes_model
        self._last: State | None = None
        self._slow = False  # whether the warning about the training loss was given
        self._over = False
        if run.server.resume:
            self._resume()
        started.write(folder, run.flat)

    def _resume(self) -> None:
        """Restore the state of the run after its last checkpoint. Raises ConfigError."""
        go_back(self.folder, self.run.server.resume_from)
        done, before = rounds_done(self.folder), summary_of(self.folder)
        history = self.history
        for line in lines_until(self.folder, done):
            history.add(line)
        history.resumed = [*before.get("resumed", []), done]
        self.began -= before.get("seconds", 0.0)
        best = self.checkpoints / checkpoint.BEST
        there = checkpoint.about(best)["round"] if best.exists() else None
        if history.best is not None and history.best["round"] != there:
            # The process ended before it saved this state, or the run went back to a round before the saved one.
            history.best = history.lines[-1] if history.lines[-1].get("chosen-by") is not None else None
            checkpoint.save(best, checkpoint.load(self.checkpoints / checkpoint.LAST)[0], {"round": done})

    def __enter__(self) -> "Results":
        self._summarise(RUNNING)  # for a run that is killed before its first round
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.on_end(error)

    def notice(self, notices: Iterable[str]) -> None:
        """Log each notice once and add it to the summary."""
        for notice in notices:
            if notice not in self.notices:
                LOG.warning("%s", notice)
                self.notices.append(notice)

    def on_start(self, facts: RunFacts) -> None:
        """Write the settings, completed with values that come from the data."""
        self._task = facts.config
        filled = flatten(facts.config)
        started.write(self.folder, self.run.flat | {key: filled[key] for key in FILLED if filled[key]})

    def on_round(self, report: RoundReport, state: State) -> None:
        """Append the line of the round to metrics.jsonl and update the summary."""
        line = line_of(report, self.measure)
        with (self.folder / METRICS).open("ab", buffering=0) as file:
            append(file, written_json(line) + "\n")
            os.fsync(file.fileno())  # before the checkpoint, which relies on this line
        self.history.add(line)
        self._last = state
        self.stopped = report.stopped if report.number < self.run.server.num_server_rounds else ""
        self._summarise(RUNNING)  # for a run that is killed

    def on_checkpoint(self, report: RoundReport, state: State) -> None:
        """Save the state if it is the best so far.

        The newest state is saved first. So a round that is repeated, perhaps with different bits, cannot have replaced
        an older best state.
        """
        if self.history.best is self.history.lines[-1]:
            checkpoint.save(self.checkpoints / checkpoint.BEST, state, {"round": report.number})
        if not self._slow and (slow := not_falling(self.history.lines, self._task, self.measure)):
            self._slow = True
            self.notice([slow])

    def on_end(self, error: BaseException | None) -> None:
        """Write the tuned model, the summary and the report."""
        self._over = True
        if error is not None and not isinstance(error, Exception):  # a signal or Ctrl-C
            self._end(INTERRUPTED)
        elif error is not None:
            self._salvage(error)
            self._end(FAILED, sentence(error, self.folder) if is_full(error) else str(error) or repr(error))
        else:
            try:
                self._export()
            except Exception as failure:
                self._end(FAILED, f"the tuned model could not be written: {failure}")
                raise
            self._end(COMPLETED)

    def _salvage(self, error: BaseException) -> None:
        """Write the model of the last good round of a failed run."""
        if isinstance(error, RunFailed) and self.history.learned:
            try:
                self._export()
            except Exception as failure:  # noqa: BLE001 - the run's own failure matters more
                LOG.warning("the tuned model of earlier rounds could not be written: %s", failure)

    def _end(self, status: str, error: str = "") -> None:
        if error:
            LOG.error("the run failed: %s", error)
        try:
            self._write_end(status, error)
        except OSError as failure:
            if not error:
                raise
            LOG.error("the summary could not be written; it still describes the run after its last round: %s", failure)

    def _write_end(self, status: str, error: str) -> None:
        summary = self._summarise(status, error)
        write_report(self.folder, summary, self.history.lines)
        if status == COMPLETED:
            LOG.info("finished in %.0f s, results in %s", summary["seconds"], self.folder)
            if self.usage:
                LOG.info("the tuned model, in Python:\n%s", "\n".join(self.usage))
        elif can_resume(self.folder):
            LOG.info("%s", hint(self.folder))

    def summary(self, status: str, error: str = "") -> dict[str, Any]:
        """Return the summary of the run so far."""
        return {
            "status": status,
            **({"error": error} if error else {}),
            **({"stopped": self.stopped} if self.stopped else {}),
            "strategy": self.run.strategy.name,
            "tuning": self.run.task.tuning.name,
            "seed": self.run.task.seed,
            "metric": self.measure.metric,
            "metric-source": self._source(),
            **self.history.quality(),
            **self.history.course(),
            "seconds": round(time.monotonic() - self.began, 3),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "folder": str(self.folder),
            **({"notices": self.notices} if self.notices else {}),
            **({"usage": self.usage} if self.usage else {}),
        }

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
        """Write the tuned model, last and best, if it is wanted."""
        if self._last is None or not self._writes_model:
            return
        history = self.history
        last = (history.lines[-1]["round"], self._last)
        best = last
        if history.best is not None:
            best = history.best["round"], checkpoint.load(self.checkpoints / checkpoint.BEST)[0]
        states = {"last": last, "best": best}
        self.usage = write_tuned(self.run, self._task, states, self.folder / "model", Recorded.of(self.folder))

"""The part of a run's log that is shown: our own lines, every error once and short, no banners.

Rounds are read from metrics.jsonl instead (`thistledown.rounds`). Flower writes `INFO :      text`; a line without such
a prefix belongs to the record before it (tracebacks) or was printed by a library. The whole log is in run.log.
"""

import itertools
import re
from collections import Counter

from server_app.outputs import GO_TO

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
EXCEPTION = re.compile(r"(?:\w+\.)*([A-Z]\w*)(: .+)?")
NUMBER = re.compile(r"\d+")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
TEXT = 12  # column at which a record's text begins
STARTED = "Successfully started run "  # followed by Flower's run id
ITEM = "  - "  # of an error that lists problems
CARRIERS = ("RayTaskError", "ClientAppException")  # they repeat the exception they wrap
TRACEBACK = "Traceback (most recent call last):"
RAISED = "Simulation raised an exception"
FLOWERS = (
    "Starting logstream", "Since flwr ", "Federation `", "To change federation size", "Exiting logstream",
    "An exception was raised when processing", "ray::", "Exit Code: ", "configure_", "aggregate_", "[ROUND ",
)  # fmt: skip
# lines of the round loop and of the results folder that are shown from metrics.jsonl and summary.json instead
SHOWN_OTHERWISE = (
    "round ", "the run failed: ", "finished in ", "the tuned model, in Python:", "resume it: ", "Starting ",
    "node   rows", "... and ", " ", "\t",
)  # fmt: skip
SAID = {"Starting Flower Simulation": "starting Ray (takes a while the first time)"}
LIMIT = 5  # warnings that differ only in numbers are shown this often, then counted


class Console:
    """Filters a run's log line by line; every method returns lines to print."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self.run_id = ""  # Flower's run id, once the run is submitted
        self.folder = ""  # the results folder, once the run has one
        self.cause = ""  # the error that ended the run, if the log has it
        self.stray: list[str] = []  # lines before the run was submitted
        self._level, self._text, self._below = "", "", ""  # the current record
        self._said: set[str] = set()
        self._often: Counter[str] = Counter()
        self._hidden: dict[str, str] = {}  # one example per suppressed warning

    def read(self, line: str) -> list[str]:
        """Return what to print for the next line of the log."""
        line = ANSI.sub("", line).rstrip().rsplit("\r", 1)[-1]
        if level := _level(line):
            shown = self._finished()
            self._level, self._text = level, line[TEXT:]
            if self._text.startswith(GO_TO):
                self.folder = self._text.removeprefix(GO_TO)
            shown += self._begun()
        else:
            if line.startswith(STARTED):
                self.run_id = line.removeprefix(STARTED)
            self._below_record(line)
            shown = []
        return [line] if self.verbose else shown

    def end(self) -> list[str]:
        """Return what to print at the end of the log."""
        shown = self._finished()
        shown += [f"{self._often[key]} times in all: {line}" for key, line in self._hidden.items()]
        return [] if self.verbose else shown

    def _begun(self) -> list[str]:
        """Return what to print when a record begins."""
        text = SAID.get(self._text, self._text)
        loud = self._level in ("WARNING", "ERROR", "CRITICAL")
        if not text.strip() or self._is_traceback() or self._is_idle(text, loud) or text in self._said:
            return []
        if loud:
            return self._limited(f"{self._level.lower()}: {text}", NUMBER.sub("#", text), LIMIT)
        self._said.add(text)
        return [text]

    def _finished(self) -> list[str]:
        """Return what to print when a record ends: the exception, if the record is a traceback."""
        lines = self._below.splitlines()
        raised = [(place, m) for place, line in enumerate(lines) if (m := EXCEPTION.fullmatch(line))]
        raised = [(place, m) for place, m in raised if m[1] not in CARRIERS]
        traceback, text = self._is_traceback(), self._text
        self._level, self._text, self._below = "", "", ""
        if not traceback or not raised:
            return []
        place, last = raised[-1]
        more = itertools.takewhile(lambda line: line.startswith(ITEM), lines[place + 1 :])
        short = "\n".join([last[1] + (last[2] or ""), *more])
        if text == RAISED:
            self.cause = short
            return []
        return self._limited(f"error: {short}", short, 1)

    def _below_record(self, line: str) -> None:
        if not self.run_id:
            self.stray.append(line)
        if self._is_traceback():
            self._below += line + "\n"

    def _is_traceback(self) -> bool:
        return self._text in (TRACEBACK, RAISED)

    def _limited(self, line: str, key: str, limit: int) -> list[str]:
        """Return the line, unless `limit` lines with this key were printed."""
        self._often[key] += 1
        if self._often[key] <= limit:
            return [line]
        self._hidden.setdefault(key, line)
        return []

    @staticmethod
    def _is_idle(text: str, loud: bool) -> bool:
        """Return whether a record has no information for the user, or is shown in another way."""
        if text.startswith("[ROUND ") and not text.endswith("]"):
            return False  # a message of the round loop
        return text.startswith(FLOWERS) or text.startswith("the run failed: " if loud else SHOWN_OTHERWISE)


def _level(line: str) -> str:
    """Return the level of the record that a line begins, or "" if it begins none."""
    level, colon, text = line.partition(":")
    return level.strip() if colon and level.strip() in LEVELS and text[:1].isspace() else ""

"""What of a run's log is worth showing: our own lines as they come, an error once and short, no banners.

Rounds are not read here: they come from metrics.jsonl (`thistledown.rounds`). Flower writes `INFO :      text`; lines
without such a start belong to the record before them (tracebacks) or were printed by a library. The whole log is in
run.log.
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
STARTED = "Successfully started run "  # and Flower's id of it
ITEM = "  - "  # of an error that lists problems
CARRIERS = ("RayTaskError", "ClientAppException")  # they repeat the exception that they carry
TRACEBACK = "Traceback (most recent call last):"
RAISED = "Simulation raised an exception"
FLOWERS = (
    "Starting logstream", "Since flwr ", "Federation `", "To change federation size", "Exiting logstream",
    "An exception was raised when processing", "ray::", "Exit Code: ", "configure_", "aggregate_", "[ROUND ",
)  # fmt: skip
# lines of the round loop and of the results folder that are shown otherwise: from metrics.jsonl and summary.json
SHOWN_OTHERWISE = (
    "round ", "the run failed: ", "finished in ", "the tuned model, in Python:", "resume it: ", "Starting ",
    "node   rows", "... and ", " ", "\t",
)  # fmt: skip
SAID = {"Starting Flower Simulation": "starting Ray (takes a while the first time)"}
LIMIT = 5  # warnings that differ by numbers only are shown this often, then counted


class Console:
    """Reads a run's log line by line; every answer is a list of lines to print."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self.run_id = ""  # Flower's, once the run is submitted
        self.folder = ""  # of the results, once the run has one
        self.cause = ""  # what ended the run, as far as the log says
        self.stray: list[str] = []  # lines before the run was submitted
        self._level, self._text, self._below = "", "", ""  # the record that is being read
        self._said: set[str] = set()
        self._often: Counter[str] = Counter()
        self._hidden: dict[str, str] = {}  # an example of what was printed often enough

    def read(self, line: str) -> list[str]:
        """What to print for the next line of the log."""
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
        """What to print when the log is over."""
        shown = self._finished()
        shown += [f"{self._often[key]} times in all: {line}" for key, line in self._hidden.items()]
        return [] if self.verbose else shown

    def _begun(self) -> list[str]:
        """What to print when a record begins."""
        text = SAID.get(self._text, self._text)
        loud = self._level in ("WARNING", "ERROR", "CRITICAL")
        if not text.strip() or self._is_traceback() or self._is_idle(text, loud) or text in self._said:
            return []
        if loud:
            return self._limited(f"{self._level.lower()}: {text}", NUMBER.sub("#", text), LIMIT)
        self._said.add(text)
        return [text]

    def _finished(self) -> list[str]:
        """What to print when a record ends: of a traceback, what was raised."""
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
        """The line, unless lines of this key were printed often enough."""
        self._often[key] += 1
        if self._often[key] <= limit:
            return [line]
        self._hidden.setdefault(key, line)
        return []

    @staticmethod
    def _is_idle(text: str, loud: bool) -> bool:
        """Return whether a record tells nobody anything, or nothing that is not shown otherwise."""
        if text.startswith("[ROUND ") and not text.endswith("]"):
            return False  # what the round loop says of a round
        return text.startswith(FLOWERS) or text.startswith("the run failed: " if loud else SHOWN_OTHERWISE)


def _level(line: str) -> str:
    """Return the level of the record that a line begins, empty where it begins none."""
    level, colon, text = line.partition(":")
    return level.strip() if colon and level.strip() in LEVELS and text[:1].isspace() else ""

"""What of a run's log is worth showing: our own lines as they come, an error once and short, no banners.

Flower writes `INFO :      text`; lines without such a start belong to the record before them (tracebacks) or were
printed by a library. The whole log is in run.log.
"""

import itertools
import re
from collections import Counter

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s")
TEXT = 12  # column at which a record's text begins
RUN = re.compile(r"Successfully started run (\d+)")
FOLDER = re.compile(r"results go to (.+)")
EXCEPTION = re.compile(r"(?:\w+\.)*([A-Z]\w*)(: .+)?")
ITEM = re.compile(r"  - ")
CARRIERS = ("RayTaskError", "ClientAppException")  # they repeat the exception that they carry
TRACEBACK = "Traceback (most recent call last):"
RAISED = "Simulation raised an exception"
NOISE = re.compile(
    r"Starting logstream|Since flwr |Federation `|To change federation size|\s*flwr federation|Exiting logstream"
    r"|configure_\w+: Sampled|aggregate_\w+: Received|\[ROUND \d+/\d+\]$"
    r"|An exception was raised when processing|ray::|Exit Code: |Starting \w+: strategy="
    r"|the run failed: |finished in |the tuned model, in Python:|go on with it: "
    r"|node   rows|\s+\d+ +\d+ +[\d.]|\.\.\. and \d+ more; |\s*$"
)
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
        if RECORD.match(line):
            shown = self._finished()
            self._level, self._text = line.split(" ", 1)[0].rstrip(":"), line[TEXT:]
            self._find(FOLDER, "folder", self._text)
            shown += self._begun()
        else:
            self._find(RUN, "run_id", line)
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
        if self._is_traceback() or NOISE.match(text) or text in self._said:
            return []
        if self._level in ("WARNING", "ERROR", "CRITICAL"):
            return self._limited(f"{self._level.lower()}: {text}", re.sub(r"\d+", "#", text), LIMIT)
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
        more = itertools.takewhile(ITEM.match, lines[place + 1 :])  # of an error that lists its problems
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

    def _find(self, pattern: re.Pattern[str], name: str, text: str) -> None:
        if found := pattern.match(text):
            setattr(self, name, found[1])

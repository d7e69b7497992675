"""The log of a run in the user's own process: warnings and errors alone, or all lines as Flower prints them."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from thistledown.console import TEXT
from thistledown.simulation.frames import Record

RAISED = "the run failed: "  # the rest of the line is raised as an exception
LIMIT = 5  # warnings that differ only in numbers are shown this often


class _Shown(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._often: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        alike = re.sub(r"\d+", "#", text)
        self._often[alike] += 1
        if self._often[alike] <= LIMIT and not text.startswith(RAISED):
            self._say(f"{record.levelname.lower()}: {text}")


class _Lines(logging.Handler):
    def __init__(self, read: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._read = read

    def emit(self, record: logging.LogRecord) -> None:
        for line in (f"{record.levelname} :".ljust(TEXT) + self.format(record)).splitlines():
            self._read(f"{line}\n")


def warnings_alone(say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Pass only warnings and errors of Flower's logger to `say` within the context.

    Warnings of libraries about future changes are suppressed.
    """
    return handled(_Shown(say))


def all_lines(read: Callable[[str], None]) -> AbstractContextManager[None]:
    """Pass the records of Flower's logger to `read` within the context, line by line, as Flower prints them."""
    return handled(_Lines(read))


def log_again(record: Record) -> None:
    """Log what another process has logged, with its traceback."""
    level, text, traceback = record
    logger = logging.getLogger("flwr")
    made = logger.makeRecord(logger.name, level, __file__, 0, "%s", (text,), None)
    made.exc_text = traceback or None
    logger.handle(made)


@contextmanager
def handled(handler: logging.Handler) -> Iterator[None]:
    """Let this handler alone have the records of Flower's logger, from its level on, within the context."""
    logger = logging.getLogger("flwr")
    handlers, level = list(logger.handlers), logger.level
    logger.handlers[:] = [handler]
    logger.setLevel(handler.level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)

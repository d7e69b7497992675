"""The log of a run in the user's own process: only the warnings and errors of Flower's log."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def warnings_alone(say: Callable[[str], None]) -> Iterator[None]:
    """Pass only warnings and errors of Flower's logger to `say` within this block.

    Warnings of libraries about future changes are suppressed.
    """
    logger = logging.getLogger("flwr")
    handlers, level = list(logger.handlers), logger.level
    logger.handlers[:] = [_Shown(say)]
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)

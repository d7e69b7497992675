"""What is said while a run goes on in somebody's own process: of Flower's log only what needs a person."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RAISED = "the run failed: "  # what follows is raised too
LIMIT = 5  # warnings that differ by numbers only are shown this often


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
    """Within this block Flower's logger gives warnings and errors to `say`, and nothing else to anybody.

    Libraries do not say what they will change one day.
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

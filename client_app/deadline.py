"""The time limit that the node's owner sets for work on a message."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from client_app.permission import REFUSED
from client_app.public_errors import NodeError

LOG = logging.getLogger("flwr")


class TooLong(NodeError):
    """Work that exceeded the time limit."""


@contextmanager
def within_seconds(limit: float) -> Iterator[None]:
    """Interrupt the block after `limit` seconds (0: never), between two Python instructions. Raises TooLong."""
    if not limit:
        yield
        return
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        LOG.warning("policy: max-seconds = %g is not enforced: it needs the main thread of a POSIX system", limit)
        yield
        return

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        raise TooLong(f"policy: work on a message took more than max-seconds = {limit:g}", REFUSED + "seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""An empty folder in which Flower's programs work, by which they are found and ended, and which is removed without a
trace.

Only this user can read it. A lock on it tells leftovers of killed commands from those at work.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from thistledown.processes.environment import clean
from thistledown.processes.leftovers import PREFIX, WORK, end_processes_in, lock, sweep

LONGEST_ROOT = 40  # characters; Ray's sockets below it must fit into the 104 that macOS allows a path
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",  # show lines as they are printed
}


class Workplace:
    """A folder and the processes in it. `bin` in it comes first on their PATH, then this interpreter's programs."""

    def __init__(self) -> None:
        root = tempfile.gettempdir()
        root = root if len(root) < LONGEST_ROOT else "/tmp"
        sweep(Path(root))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root)).resolve()
        self.work = self.folder / WORK
        self._lock: int | None = None  # descriptor of the lock on the folder

    def open(self) -> None:
        """Lock the folder and make `work`, where processes work unless they are given a folder inside it."""
        self._lock = lock(self.folder)

    def begin(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a program with its output in a log."""
        with log.open("ab") as file:
            return subprocess.Popen(
                command,
                cwd=folder or self.work,
                env=self.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a process: the user's, `own` on top, and those that keep Flower quiet."""
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        return clean(os.environ) | QUIET | {"PATH": os.pathsep.join(path), **own}

    def close(self) -> None:
        """End every process that works here, and remove the folder."""
        with _undisturbed():
            end_processes_in(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM within this block. In a thread nothing changes, as signals go to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

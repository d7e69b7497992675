"""The processes that serve a node's messages, as the executor that forks them knows them: one for each run.

A process that stays is handed the tokens of its run's messages through a pipe, and answers each before it asks anything
of the SuperNode. So no token is lost with a process that has just ended, and none is used twice.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn

from thistledown.processes.serving import TAKEN

TAKES = 10.0  # seconds that a process may take to answer a token: it may still be sending what it has done
ENDS = 2.0  # seconds that a process may take to end once its pipe is closed, if it is not at a message
Work = Callable[[Connection], int]  # what a process does, with its end of the pipe; the result is its exit code


@dataclass(eq=False)
class Process:
    """A forked process, our end of its pipe, and the folder of its temporary files."""

    pid: int
    pipe: Connection
    folder: str
    ended: bool = False

    @classmethod
    def fork(cls, work: Work, others: Sequence["Process"]) -> "Process":
        """Return a process that does `work` with its end of a pipe. Raises OSError if there can be none."""
        folder = tempfile.mkdtemp(prefix="thistledown-node-")
        ours, theirs = Pipe()
        try:
            pid = os.fork()
        except OSError:
            shutil.rmtree(folder)
            raise
        if pid == 0:
            for pipe in (ours, *(other.pipe for other in others)):  # their processes end when the executor does
                pipe.close()
            os.environ["TMPDIR"] = tempfile.tempdir = folder
            _end_with(work, theirs, folder)
        theirs.close()
        return cls(pid, ours, folder)

    def take(self, token: str) -> bool:
        """Hand over the token of a message; return whether the process has answered it."""
        try:
            self.pipe.send_bytes(token.encode())
            return self.pipe.poll(TAKES) and self.pipe.recv_bytes() == TAKEN
        except (OSError, EOFError):
            return False

    def has_ended(self) -> bool:
        """Return whether it has ended; then nothing is left of it."""
        if not self.ended and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.ended = True
            self.pipe.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.ended

    def leave(self) -> bool:
        """Let it end when it is done with its message; return whether it has, within seconds."""
        self.pipe.close()
        deadline = time.monotonic() + ENDS
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.ended

    def kill(self) -> None:
        """End it at once; return when it has ended."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
        while not self.has_ended():
            time.sleep(0.01)


def _end_with(work: Work, pipe: Connection, folder: str) -> NoReturn:
    """Do the work and end this process without the exit handlers of its parent."""
    code = 1
    try:
        code = work(pipe)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(code)


class Residents:
    """At most `runs` processes (0: one, which gets one message), each of its own run, the one used last at the end."""

    def __init__(self, runs: int) -> None:
        self._most = max(runs, 1)
        self._processes: dict[Hashable, Process] = {}

    def hand_over(self, run: Hashable, token: str, work: Work) -> bool:
        """Give a message to the process of its run, or to a new one that does `work`; return whether one has it.

        A SuperNode sends one message at a time. So a process in the way is idle, or at a message that the SuperNode has
        given up: it ends first, and its memory is free. Raises OSError if there can be no new process.
        """
        self.reap()
        process = self._processes.pop(run, None)
        if process is not None and not process.take(token):
            process.kill()
            process = None
        if process is None:
            self._make_room()
            process = Process.fork(work, list(self._processes.values()))
            if not process.take(token):
                process.kill()
                return False
        self._processes[run] = process
        return True

    def reap(self) -> None:
        """Forget processes that have ended."""
        self._processes = {run: process for run, process in self._processes.items() if not process.has_ended()}

    def close(self) -> None:
        """Let all processes end; those at a message see for themselves that the executor is gone."""
        for process in self._processes.values():
            process.leave()

    def _make_room(self) -> None:
        while len(self._processes) >= self._most:
            oldest = self._processes.pop(next(iter(self._processes)))
            if not oldest.leave():
                oldest.kill()

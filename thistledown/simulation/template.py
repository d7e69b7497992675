"""The process that workers are forked from: it has imported what they need, runs no thread, and waits.

It is forked from the caller's process where that is safe, and shares its imports. Elsewhere it is a new interpreter.
Workers that die are replaced from it, at a time when the caller's process has threads and cannot be forked any more.
"""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from strategies.exchange.types import RunFailed
from task.device import found, kind
from thistledown.simulation.worker import load, serve

SIZE = 8  # bytes of a number on the control socket
Started = tuple[int, Callable[[], object]]
TASKS = Path("/proc/self/task")  # a folder for every thread
ALLOCATOR = "jemalloc_bg_thd\n"  # the name of its thread
STOP = 1.0  # seconds that threads have to stop for a fork
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROGRAM = "import sys; from thistledown.simulation.template import begin; begin(int(sys.argv[1]), sys.argv[2:])"


class Template:
    """The caller's end of the process that workers are forked from."""

    def __init__(self, modules: Sequence[str], device: str) -> None:
        """Start the process with these modules imported. `device` is what the workers will compute on."""
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs:
            start = _forked if kind(found(device)) == "cpu" and can_fork() else _spawned
            self._pid, self._wait = start(self._control, theirs, list(modules))

    def close(self) -> None:
        """End the process, which kills its workers before."""
        self._control.shutdown(socket.SHUT_RDWR)  # a thread that waits for an answer gets none
        os.kill(self._pid, signal.SIGTERM)  # it may still be importing
        self._wait()
        self._control.close()

    def worker(self) -> tuple[Connection, int]:
        """Return the connection to a new worker, and its process id. Raises RunFailed if the template has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._asked(b"fork", [theirs.fileno()])
        return Connection(ours.detach()), pid

    def status(self, pid: int) -> int:
        """Wait for the end of a worker and return its exit code, negative for a signal. Raises RunFailed."""
        return os.waitstatus_to_exitcode(self._asked(pid.to_bytes(SIZE, "big")))

    def _asked(self, question: bytes, descriptors: Sequence[int] = ()) -> int:
        try:
            with self._lock:
                socket.send_fds(self._control, [question], list(descriptors))
                answer = self._control.recv(SIZE, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if not answer:
            raise RunFailed("the process that starts workers has ended; what it wrote is above")
        return int.from_bytes(answer, "big")


def can_fork() -> bool:
    """Return whether a fork of this process works: it has no thread that may hold a lock, and no team of OpenMP that a
    child would wait for. Those of OpenBLAS and of Arrow's allocator, which importing them starts, stop for a fork, so
    threads are counted after one whose child does nothing."""
    if not TASKS.exists() or threading.active_count() > 1:
        return False
    os.waitpid(_fork(lambda: None), 0)
    deadline = time.monotonic() + STOP
    while not (alone := _threads() == 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alone


def _threads() -> int:
    """Return how many threads this process has, of Python and of libraries, beside that of Arrow's allocator."""
    count = 0
    for task in TASKS.iterdir():
        with suppress(OSError):  # it has just ended
            count += (task / "comm").read_text() != ALLOCATOR
    return count


def _forked(ours: socket.socket, theirs: socket.socket, modules: list[str]) -> Started:
    """Fork this process. Returns its id, and what waits for its end."""
    load(modules)

    def work() -> None:
        ours.close()
        _run(theirs)

    pid = _fork(work)
    return pid, lambda: os.waitpid(pid, 0)


def _spawned(ours: socket.socket, theirs: socket.socket, modules: list[str]) -> Started:
    """Start an interpreter with this process's path. Returns its id, and what waits for its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # -P: modules of the working directory must not take the place of this process's
    command = [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno()), *modules]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    return process.pid, process.wait


def begin(descriptor: int, modules: list[str]) -> None:
    """Be the template, in a new interpreter: take orders from this socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load(modules)
    _run(socket.socket(fileno=descriptor))


def _run(control: socket.socket) -> None:
    """Fork a worker for every socket that arrives, and tell how workers ended, until the caller is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they end the caller; this process must kill its workers first
    gc.collect()
    gc.freeze()  # or each worker's first collection would copy the pages of all imported modules
    workers: set[int] = set()
    try:
        while True:
            question, descriptors, *_ = socket.recv_fds(control, SIZE, 1)
            if not question:
                return
            if descriptors:
                answer = _worker(control, descriptors[0])
                workers.add(answer)
            else:
                pid = int.from_bytes(question, "big")
                _, answer = os.waitpid(pid, 0)
                workers.discard(pid)
            control.sendall(answer.to_bytes(SIZE, "big"))
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _worker(control: socket.socket, descriptor: int) -> int:
    """Fork a worker that serves this socket, and return its process id."""

    def work() -> None:
        control.close()
        serve(Connection(descriptor))

    pid = _fork(work)
    os.close(descriptor)
    return pid


def _fork(work: Callable[[], None]) -> int:
    """Fork a process that does this work and ends. Returns its id. Signals reach the child once it has handlers of its
    own: one of this process would go on with this process's work there."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the child would write it again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python's, which counts threads that stop
            pid = os.fork()
        if not pid:
            _end_with(work, before)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(work: Callable[[], None], mask: set[signal.Signals | int]) -> NoReturn:
    """Do the work of a forked process and end it, without the exit handlers of the process that it was forked from."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, who ends this process
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends with it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

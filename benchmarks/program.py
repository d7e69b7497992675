"""Programs that work in their own folders, by which they and the processes they started are found."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from thistledown.processes.leftovers import processes_in

BIN = Path(sys.executable).parent
PORTS = range(20_000, 32_000)  # above those of Ray's workers
START = 180.0  # seconds that a process may take to answer
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "200",
}


class DeploymentError(RuntimeError):
    """Something that did not start, or did not happen in time; the message has the end of the log."""


@dataclass
class Program:
    """A process that works in a folder of its own and writes a log there."""

    folder: Path
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> str:
        """Return its log so far, over all its starts."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self) -> "Program":
        self.folder.mkdir(parents=True, exist_ok=True)
        home = {"FLWR_HOME": str(self.folder / "flwr"), "THISTLEDOWN_CACHE": str(self.folder / "cache")}
        path = {"PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=os.environ | QUIET | path | home | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def kill(self) -> None:
        """Kill the program and everything it started at once, like a crash of the machine."""
        self.send(signal.SIGKILL)
        self.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program and everything it started."""
        for process in processes_in(self.folder):
            with _gone():
                process.send_signal(number)

    def crash(self) -> None:
        """Send SIGKILL to the program only; the processes it started keep running."""
        assert self.process is not None
        self.process.kill()
        self.wait()

    def wait(self, seconds: float = START) -> int:
        """Wait for the end and return the exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def until(self, said: str, seconds: float = START, since: int = 0) -> "re.Match[str]":
        """Wait until its log matches, from the place `since` on. Raises DeploymentError."""
        deadline = time.monotonic() + seconds
        while True:
            if found := re.compile(said).search(self.log, since):
                return found
            if time.monotonic() > deadline or (self.process is not None and self.process.poll() is not None):
                if found := re.compile(said).search(self.log, since):
                    return found
                raise DeploymentError(f"{self.folder.name} has not said {said!r} in {seconds:g} s:\n{self.log[-4000:]}")
            time.sleep(0.1)


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        return


def free_port() -> int:
    """Return a port that nothing listens on, below those that Linux gives to outgoing connections: nobody takes it
    before a program listens there, nor while the program is started again."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise DeploymentError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")

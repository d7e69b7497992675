"""A SuperLink of our own for one simulation: started in an empty folder, gone without a trace afterwards.

Ray puts the folder that the SuperLink was started in before the app on its workers' path, so any other folder
could make nodes run the wrong code; and a SuperLink that is already there may belong to another
environment. Everything it starts, Ray included, works in that folder: that is how it is found again.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

NAME = "simulation"  # of the connection, in config.toml
START = 60.0  # seconds that it may take to answer
ATTEMPTS = 5
GRACE = 3.0  # seconds between asking a process to end and ending it
LONGEST_ROOT = 40  # characters; Ray's sockets below it must fit into the 104 that macOS allows a path


class SuperLinkError(RuntimeError):
    """A SuperLink that did not start, or that does not answer (the message has the end of its log), or an app that
    Flower does not take."""


class SuperLink:
    """A running SuperLink; a context manager that stops it and all that it started."""

    def __init__(self) -> None:
        root = tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="td-", dir=root if len(root) < LONGEST_ROOT else "/tmp")).resolve()
        self.work = self.folder / "work"
        self.port = _free_port()
        self.log = self.folder / "superlink.log"

    def __enter__(self) -> "SuperLink":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def submit(self, app: Path, config: str, nodes: int, cpus: int, gpus: float) -> "subprocess.Popen[str]":
        """Submit a run with the run config `config` (TOML); the process prints the run's log as it comes. Once.

        Raises SuperLinkError for an app that Flower does not take.
        """
        from thistledown.bundle import gathered  # Flower's whole command line, which no other command needs

        try:
            bundle = gathered(app, self.folder / "app")
        except ValueError as error:
            raise SuperLinkError(f"Flower does not take the app in {app}: {error}") from error
        file = self.folder / "run.toml"
        file.write_text(config, encoding="utf-8")
        size = f"num-supernodes={nodes} client-resources-num-cpus={cpus} client-resources-num-gpus={gpus}"
        command = ["run", str(bundle), NAME, "--stream", "--run-config", str(file), "--federation-config", size]
        return subprocess.Popen(
            [_executable("flwr"), *command],
            cwd=self.work,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def status(self, run_id: str) -> tuple[str, str]:
        """Flower's status of a run, such as `finished:completed`, and its details. Raises SuperLinkError."""
        command = [_executable("flwr"), "list", NAME, "--run-id", run_id, "--format", "json"]
        done = subprocess.run(
            command,
            cwd=self.work,
            env=self._environment(),
            capture_output=True,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            run: dict[str, Any] = json.loads(done.stdout)["runs"][0]
            return str(run["status"]), str(run["status-details"])
        except (ValueError, LookupError) as error:
            raise SuperLinkError(f"Flower does not say how the run ended: {done.stdout or done.stderr}") from error

    def tail(self, lines: int = 20) -> str:
        """The end of the SuperLink's own log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _start(self) -> None:
        self.work.mkdir()
        home = self.folder / "home"
        home.mkdir()
        connection = f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "{NAME}"\n[superlink.{NAME}]\n{connection}')
        command = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [_executable("flower-superlink"), *command, "--disable-runtime-dependency-installation"],
                cwd=self.work,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        while not _answers(self.port):
            if process.poll() is not None:
                raise SuperLinkError(f"Flower's SuperLink ended with code {process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise SuperLinkError(f"Flower's SuperLink does not answer after {START:g} s:\n{self.tail()}")
            time.sleep(0.1)

    def _stop(self) -> None:
        with _undisturbed():
            end_processes_in(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        own = {
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do anyway; silences its warning
            "RAY_TMPDIR": str(self.folder),  # its session would stay in /tmp/ray for ever
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",  # lines shall come as they are printed
            "PYTHONIOENCODING": "utf-8",
            "COLUMNS": "160",
        }
        for name in ("NO_PROXY", "no_proxy"):
            own[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
        if cache := os.environ.get("THISTLEDOWN_CACHE"):
            own["THISTLEDOWN_CACHE"] = str(Path(cache).expanduser().absolute())
        return os.environ | own


def end_processes_in(folder: Path) -> None:
    """End every process that works in a folder or below it."""
    for _ in range(ATTEMPTS):  # what ends may have started something just before
        ours = processes_in(folder)
        for process in ours:
            _signal(process, "terminate")
        for process in psutil.wait_procs(ours, timeout=GRACE)[1]:
            _signal(process, "kill")
        if not ours:
            break


def processes_in(folder: Path) -> list[psutil.Process]:
    """Every process that works in a folder or below it; sessions, parents and environments do not tell, as Flower
    detaches its processes and Ray renames its own."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # somebody else's, or gone
    return found


def _executable(name: str) -> str:
    """A program of the environment that this interpreter belongs to."""
    return str(Path(sys.executable).parent / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    """Whether the SuperLink is ready. No proxy is asked for this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _signal(process: psutil.Process, action: str) -> None:
    try:
        getattr(process, action)()
    except psutil.NoSuchProcess:
        return


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait until what must be finished is finished."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

"""A private SuperLink for one simulation, started in an empty folder and removed without a trace.

Ray puts the SuperLink's working directory before the app on its workers' path, so another folder could make nodes run
the wrong code. An existing SuperLink may belong to another environment. All processes it starts, including Ray's, work
in that folder, which is how they are found again.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from thistledown.console import ANSI
from thistledown.processes import programs
from thistledown.processes.environment import clean
from thistledown.processes.leftovers import PREFIX, WORK, end_processes_in, lock, sweep

NAME = "simulation"  # of the connection, in config.toml
LOOK_EVERY, GRACE = 0.2, 3.0  # seconds
START = 60.0  # seconds that the SuperLink has to answer
LONGEST_ROOT = 40  # characters; Ray's sockets below it must fit into the 104 that macOS allows a path


class SuperLinkError(RuntimeError):
    """A SuperLink that did not start or does not answer, with the end of its log, or an app that Flower does not
    accept."""


class SuperLink:
    """A running SuperLink, as a context manager that stops it and everything it started."""

    def __init__(self) -> None:
        root = tempfile.gettempdir()
        root = root if len(root) < LONGEST_ROOT else "/tmp"
        sweep(Path(root))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root)).resolve()  # only this user can read it
        self.work = self.folder / WORK
        self.port = _free_port()
        self.log = self.folder / "superlink.log"
        self._secret, self._ray_token = secrets.token_hex(32), secrets.token_hex(32)
        self._lock: int | None = None  # descriptor of the lock on the folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # Flower's programs that must not end before the run

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
        """Submit a run with the run config `config` (TOML) and return the process that prints the run's log.

        Call it once. Raises SuperLinkError for an app that Flower does not accept.
        """
        from thistledown.processes.bundle import gathered  # imports Flower's command line, which no other command needs

        try:
            bundle = gathered(app, self.folder / "app")
        except ValueError as error:
            raise SuperLinkError(f"Flower does not accept the app in {app}: {error}") from error
        file = self.folder / "run.toml"
        file.write_text(config, encoding="utf-8")
        size = f"num-supernodes={nodes} client-resources-num-cpus={cpus} client-resources-num-gpus={gpus}"
        command = ["run", str(bundle), NAME, "--stream", "--run-config", str(file), "--federation-config", size]
        submitted = subprocess.Popen(
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
        threading.Thread(target=self._watch, args=(submitted,), daemon=True).start()
        return submitted

    def check(self) -> None:
        """Raise SuperLinkError if one of Flower's programs has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise SuperLinkError(f"Flower's {name} ended with code {process.returncode}:\n{self.tail()}")

    def _watch(self, submitted: "subprocess.Popen[str]") -> None:
        """End the process that reads the log once nothing writes to it any more."""
        while submitted.poll() is None:
            if any(process.poll() is not None for process in self._running.values()):
                time.sleep(GRACE)  # to read what has been written
                submitted.terminate()
                return
            time.sleep(LOOK_EVERY)

    def status(self, run_id: str) -> tuple[str, str]:
        """Return Flower's status of a run, such as `finished:completed`, and its details. Raises SuperLinkError."""
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
            run: dict[str, Any] = json.loads(ANSI.sub("", done.stdout))["runs"][0]
            return str(run["status"]), str(run["status-details"])
        except (ValueError, LookupError) as error:
            raise SuperLinkError(f"Flower did not report how the run ended: {done.stdout or done.stderr}") from error

    def tail(self, lines: int = 20) -> str:
        """Return the end of the SuperLink's own log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _start(self) -> None:
        self._lock = lock(self.folder)
        self._write_connection()
        simulation = self.folder / "bin" / "flwr-simulation"  # Flower's executor looks for it on its PATH
        simulation.parent.mkdir()
        simulation.write_text(f'#!/bin/sh\nexec {shlex.join(_program("simulation"))} "$@"\n')
        simulation.chmod(0o700)
        executor_secret = self.folder / "executor.secret"
        executor_secret.write_bytes(secrets.token_bytes(32))
        proof = ["--superexec-auth-secret-file", str(executor_secret)]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--isolation", "process"]
        command = [*_program("superlink"), "--insecure", "--simulation", *where, *proof]
        process = self._running["SuperLink"] = self._begin([*command, "--disable-runtime-dependency-installation"])
        deadline = time.monotonic() + START
        while not _answers(self.port):
            if process.poll() is not None:
                raise SuperLinkError(f"Flower's SuperLink ended with code {process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise SuperLinkError(f"Flower's SuperLink does not answer after {START:g} s:\n{self.tail()}")
            time.sleep(0.1)
        superlink = ["--insecure", "--runtime-api-address", f"127.0.0.1:{self.port}", "--parent-pid", str(process.pid)]
        self._running["executor"] = self._begin([_executable("flower-superexec"), *superlink, *proof])

    def _begin(self, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start one of Flower's programs with its output in the log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.work,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _write_connection(self) -> None:
        """Write the address of the SuperLink and the secret for Flower's command line."""
        from flwr.cli.constant import ACCESS_TOKEN_STORE_KEY, AUTHN_TYPE_STORE_KEY, REFRESH_TOKEN_STORE_KEY
        from flwr.common.constant import AuthnType
        from flwr.supercore.credential_store.file_credential_store import FileCredentialStore

        home, address = self.folder / "home", f"127.0.0.1:{self.port}"
        home.mkdir()
        connection = f'address = "{address}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "{NAME}"\n[superlink.{NAME}]\n{connection}')
        store = FileCredentialStore(home / "credentials.yaml")
        store.set(AUTHN_TYPE_STORE_KEY % address, AuthnType.OIDC.encode())
        for key in (ACCESS_TOKEN_STORE_KEY, REFRESH_TOKEN_STORE_KEY):
            store.set(key % address, self._secret.encode())

    def _stop(self) -> None:
        with _undisturbed():
            end_processes_in(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _environment(self) -> dict[str, str]:
        path = os.environ.get("PATH", os.defpath)
        own = {
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; silences its warning
            "RAY_TMPDIR": str(self.folder),  # its session would stay in /tmp/ray forever
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),  # torch makes it as soon as peft is imported
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for one machine: it listens on loopback alone
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._ray_token,
            programs.SECRET: self._secret,
            "PATH": os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), path]),
            "PYTHONUNBUFFERED": "1",  # show lines as they are printed
        }
        return clean(os.environ) | own


def _executable(name: str) -> str:
    """Return the path of a program in this interpreter's environment."""
    return str(Path(sys.executable).parent / name)


def _program(name: str) -> list[str]:
    """Return the command of one of our programs; `-P` keeps its folder off the import path."""
    return [sys.executable, "-P", programs.__file__, name]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    """Return whether the SuperLink is ready. The request uses no proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


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

"""A private SuperLink for one simulation, started in an empty folder and removed without a trace.

Ray puts the SuperLink's working directory before the app on its workers' path, so another folder could make nodes run
the wrong code. An existing SuperLink may belong to another environment. All processes it starts, including Ray's, work
in that folder, which is how they are found again.
"""

import os
import secrets
import shlex
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from thistledown.processes import programs
from thistledown.processes.client import Client, SuperLinkError, bundled, connect, executable, program, tail
from thistledown.processes.environment import NOTHING
from thistledown.processes.workplace import Workplace

NAME = "simulation"  # of the connection, in config.toml
LOOK_EVERY, GRACE = 0.2, 3.0  # seconds
START = 60.0  # seconds that the SuperLink has to answer


class SuperLink:
    """A running SuperLink, as a context manager that stops it and everything it started. `environment` has variables
    for the processes of its runs. Nodes work in a Ray of its own, or in the cluster at `ray_address`."""

    def __init__(self, environment: Mapping[str, str] = NOTHING, ray_address: str = "") -> None:
        self._environment = environment
        self._ray_address = ray_address
        self._place = Workplace()
        self.folder, self.work = self._place.folder, self._place.work
        self.port = free_port()
        self.log = self.folder / "superlink.log"
        self._secret, self._ray_token = secrets.token_hex(32), secrets.token_hex(32)
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # Flower's programs that must not end before the run

    def __enter__(self) -> "SuperLink":
        try:
            self._start()
        except BaseException:
            self._place.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.close()

    def submit(self, app: Path, config: str, nodes: int, cpus: int, gpus: float) -> "subprocess.Popen[str]":
        """Submit a run with the run config `config` (TOML) and return the process that prints the run's log.

        Call it once. Raises SuperLinkError for an app that Flower does not accept.
        """
        size = f"num-supernodes={nodes} client-resources-num-cpus={cpus} client-resources-num-gpus={gpus}"
        bundle = bundled(app, self.folder / "app")
        submitted = self._client().submit(bundle, config, self.folder / "run.toml", "--federation-config", size)
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
        return self._client().status(run_id)

    def tail(self, lines: int = 20) -> str:
        """Return the end of the SuperLink's own log."""
        return tail(self.log, lines)

    def _start(self) -> None:
        self._place.open()
        connect(self.folder / "home", NAME, f"127.0.0.1:{self.port}", "insecure = true", self._secret)
        simulation = self.folder / "bin" / "flwr-simulation"  # Flower's executor looks for it on its PATH
        simulation.parent.mkdir()
        simulation.write_text(f'#!/bin/sh\nexec {shlex.join(program("simulation"))} "$@"\n')
        simulation.chmod(0o700)
        executor_secret = self.folder / "executor.secret"
        executor_secret.write_bytes(secrets.token_bytes(32))
        proof = ["--superexec-auth-secret-file", str(executor_secret)]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--isolation", "process"]
        command = [*program("superlink"), "--insecure", "--simulation", *where, *proof]
        process = self._running["SuperLink"] = self._begin([*command, "--disable-runtime-dependency-installation"])
        deadline = time.monotonic() + START
        while not _answers(self.port):
            if process.poll() is not None:
                raise SuperLinkError(f"Flower's SuperLink ended with code {process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise SuperLinkError(f"Flower's SuperLink does not answer after {START:g} s:\n{self.tail()}")
            time.sleep(0.1)
        superlink = ["--insecure", "--runtime-api-address", f"127.0.0.1:{self.port}", "--parent-pid", str(process.pid)]
        self._running["executor"] = self._begin([executable("flower-superexec"), *superlink, *proof])

    def _begin(self, command: list[str]) -> "subprocess.Popen[bytes]":
        return self._place.begin(command, self.log, self._own())

    def _client(self) -> Client:
        return Client(NAME, self.work, self._place.environment(self._own()))

    def _own(self) -> dict[str, str]:
        return {
            **self._environment,
            **self._ray(),
            "FLWR_HOME": str(self.folder / "home"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),  # torch makes it as soon as peft is imported
            programs.SECRET: self._secret,
        }

    def _ray(self) -> dict[str, str]:
        """Return the variables that tell Flower's simulation which Ray it uses, and how."""
        common = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; silences its warning
        }
        if self._ray_address:  # `environment.clean` drops the user's own variables for Ray
            proof = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
            return {**common, **proof, "RAY_ADDRESS": self._ray_address}
        return {
            **common,
            "RAY_TMPDIR": str(self.folder),  # its session would stay in /tmp/ray forever
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for one machine: it listens on loopback alone
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._ray_token,
        }


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
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

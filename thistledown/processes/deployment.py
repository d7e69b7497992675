"""A whole deployment on this machine: a SuperLink with TLS and node authentication, and a SuperNode for each file.

Everything listens on loopback, works in one private folder, and is gone with it: keys, databases, stores, logs. The
SuperLink takes runs only from clients that know a secret. Nodes run one app only, whose hash is pinned, in processes
that are forked after the slow imports.
"""

import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from thistledown.commands.certs import Keys
from thistledown.processes import commands, programs
from thistledown.processes.bundle import app_hash
from thistledown.processes.client import Client, SuperLinkError, bundled, connect, executable, program, tail
from thistledown.processes.commands import HERE
from thistledown.processes.environment import NOTHING
from thistledown.processes.superlink import free_port
from thistledown.processes.workplace import Workplace

NAME = "federation"
START = 180.0  # seconds that a program has to answer
ONLINE = "SuperNode ID"  # what a SuperNode's log says once the SuperLink knows it


class Deployment:
    """A running deployment, as a context manager that stops it. `nodes` are the nodes' files by name,
    `environment` has variables for the processes of its runs."""

    def __init__(self, app: Path, nodes: Mapping[str, Path], environment: Mapping[str, str] = NOTHING) -> None:
        self.app, self.nodes, self._environment = app, nodes, environment
        self._place = Workplace()
        self.folder = self._place.folder
        self.home = self.folder / "home"
        self.bundle = self.folder / "app"  # what nodes run, and what is submitted
        self._pins = self.folder / "app-hashes"  # a path by which leftovers.py knows the nodes' executors
        self._keys = Keys(self.folder / "keys", [HERE], list(nodes), days=30)
        self._secret = secrets.token_hex(32)
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}  # programs and their logs

    def __enter__(self) -> "Deployment":
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

    def submit(self, config: str) -> "subprocess.Popen[str]":
        """Submit a run with the run config `config` (TOML) and return the process that prints the run's log."""
        return self._client().submit(self.bundle, config, self.folder / "run.toml")

    def check(self) -> None:
        """Raise SuperLinkError if one of the programs has ended by itself."""
        for name, (process, log) in self._running.items():
            if process.poll() is not None:
                raise SuperLinkError(f"{name} ended with code {process.returncode}:\n{tail(log)}")

    def status(self, run_id: str) -> tuple[str, str]:
        """Return Flower's status of a run, such as `finished:completed`, and its details. Raises SuperLinkError."""
        return self._client().status(run_id)

    def tail(self, lines: int = 20) -> str:
        """Return the end of the SuperLink's own log."""
        return tail(self._running["SuperLink"][1], lines)

    def _start(self) -> None:
        self._place.open()
        self._pins.write_text(app_hash(bundled(self.app, self.bundle)) + "\n", encoding="utf-8")
        self._keys.make()
        port = free_port()
        self._start_superlink(port)
        trust = f'root-certificates = "{self._keys.authority.public}"'
        connect(self.home, NAME, f"{HERE}:{port}", trust, self._secret)
        client = self._client()
        for name, file in self.nodes.items():
            client.call("supernode", "register", str(self._keys.node(name).public), NAME, "--name", name)
            self._start_node(name, file, port)
        for name in self.nodes:
            _, log = self._running[f"node {name}"]
            self._await(partial(_says, log, ONLINE), f"node {name}")

    def _start_superlink(self, port: int) -> None:
        keys, folder = self._keys, self.folder
        (secret := folder / "executor.secret").write_bytes(secrets.token_bytes(32))
        files = (keys.authority.public, keys.server.public, keys.server.private, secret, folder / "state.db")
        server = commands.Server(*map(str, files))
        asked = {programs.SECRET: self._secret}
        self._begin(
            "SuperLink", folder / "superlink", commands.superlink(program("superlink"), server, HERE, port), asked
        )
        self._await(lambda: _listens(port), "SuperLink")
        executor = [executable("flower-superexec")]
        self._begin("executor", folder / "executor", commands.serverapps(executor, server, f"{HERE}:{port}"))

    def _start_node(self, name: str, file: Path, superlink: int) -> None:
        port, own = free_port(), {"name": name, "data-path": str(file), "store-path": str(self.folder / "store")}
        keys, node = self._keys, [executable("flower-supernode")]
        trust = (f"{HERE}:{superlink}", str(keys.authority.public), str(keys.node(name).private))
        self._begin(f"node {name}", self.folder / "nodes" / name, commands.supernode(node, *trust, port, own))
        executor = [executable("thistledown-superexec")]
        command = commands.clientapps(executor, port, "--app-hashes", str(self._pins))
        self._begin(f"executor of node {name}", self.folder / "executors" / name, command)

    def _begin(self, name: str, folder: Path, command: Sequence[str], own: Mapping[str, str] = NOTHING) -> None:
        """Start a program in a folder of its own, which has its log and its Flower home."""
        folder.mkdir(parents=True)
        log = folder / "log"
        environment = {**self._environment, "FLWR_HOME": str(folder / "flwr"), **own}
        process = self._place.begin(command, log, environment, folder)
        self._running[name] = (process, log)

    def _await(self, ready: Callable[[], bool], name: str) -> None:
        process, log = self._running[name]
        deadline = time.monotonic() + START
        while not ready():
            if process.poll() is not None:
                raise SuperLinkError(f"{name} ended with code {process.returncode}:\n{tail(log)}")
            if time.monotonic() > deadline:
                raise SuperLinkError(f"{name} does not answer after {START:g} s:\n{tail(log)}")
            time.sleep(0.1)

    def _client(self) -> Client:
        return Client(NAME, self._place.work, self._place.environment({"FLWR_HOME": str(self.home)}))


def _says(log: Path, words: str) -> bool:
    return words in log.read_text(encoding="utf-8", errors="replace")


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HERE, port), timeout=1).close()
    except OSError:
        return False
    return True

"""A deployment on one machine, for tests and measurements: a SuperLink with TLS and authentication, and SuperNodes with
files of their own, each in a network namespace where these are allowed, else all on the loopback.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.machines import Machine, addresses, machines
from benchmarks.program import BIN, QUIET, START, DeploymentError, Program, free_port
from thistledown.commands.certs import Keys
from thistledown.processes import commands
from thistledown.processes.bundle import app_hash, gathered
from thistledown.processes.leftovers import end_processes_in

APP = Path(__file__).parents[1]
CONNECTION = "my-federation"
ASK = 60.0  # seconds between questions to Flower's command line, which takes a second of a core for one


class Deployment:
    """A SuperLink and what is to connect to it; a context manager that ends everything. `apart`: nodes in network
    namespaces."""

    def __init__(self, nodes: Sequence[str], apart: bool, isolation: str = "subprocess") -> None:
        self.names, self.apart, self.isolation = list(nodes), apart, isolation
        self.folder = Path(tempfile.mkdtemp(prefix="td-")).resolve()
        self.keys = Keys(self.folder / "keys", self._reached_by(), self.names, days=2)
        self.port = free_port()
        self.nodes: dict[str, Program] = {}
        self.executors: dict[str, Program] = {}  # of nodes that have one beside them
        self.executor: Program | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Deployment":
        try:
            self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.machines = dict(zip(self.names, self._stack.enter_context(machines(len(self.names), self.apart))))
            self._stack.callback(end_processes_in, self.folder)
            self.app = gathered(APP, self.folder / "app")  # `flwr run` would visit all files beside it too
            self.keys.make()
            self._write_connection()
            self.superlink = Program(self.folder / "superlink", self._superlink_command())
            self.start_superlink()
            for name in self.names:
                self.flwr("supernode", "register", str(self.keys.node(name).public), CONNECTION, "--name", name)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_superlink(self) -> None:
        """Start the SuperLink, again if it was killed; with process isolation the executor of ServerApps too, once."""
        self.superlink.start()
        self._await_port()
        if self.isolation == "process" and self.executor is None:
            command = commands.serverapps([str(BIN / "flower-superexec")], self._server(), f"127.0.0.1:{self.port}")
            self.executor = Program(self.folder / "executor", command).start()

    def node(
        self,
        name: str,
        config: Mapping[str, object],
        environment: dict[str, str] | None = None,
        executor: str = "",
    ) -> Program:
        """Start a SuperNode with a node config; `environment` goes on top of its own. `executor`, with its options, is
        the SuperExec beside it that serves its messages, ours with this app pinned; none: one that it starts itself."""
        machine, keys, port = self.machines[name], self.keys, free_port()
        proof, said = keys.node(name).private, {"name": name, **config}
        isolation = "process" if executor else "subprocess"
        command = self.node_command(machine, keys.authority.public, proof, said, port, isolation=isolation)
        self.nodes[name] = Program(self.folder / name, command, environment or {}).start()
        if executor:
            program, *options = executor.split()
            (folder := self.folder / name / "executor").mkdir(parents=True)
            (folder / "app-hashes").write_text(app_hash(self.app))
            pins = ("--app-hashes", str(folder / "app-hashes")) if program == "thistledown-superexec" else ()
            beside = commands.clientapps((*machine.prefix, str(BIN / program)), port, *pins, *options)
            self.executors[name] = Program(folder, beside, environment or {}).start()
        return self.nodes[name]

    def restart(self, name: str, tries: int = 12) -> None:
        """Start a node again, as a supervisor does, until the SuperLink takes it back: it refuses a node that it has
        heard of in the last 60 seconds."""
        for program in filter(None, (self.nodes[name], self.executors.get(name))):
            program.start()
        for _ in range(tries):
            since = len(self.nodes[name].log)
            try:
                self.nodes[name].until("SuperNode ID", seconds=30, since=since)
                return
            except DeploymentError:
                self.nodes[name].start()
        raise DeploymentError(f"{name} does not come back:\n{self.nodes[name].log[-3000:]}")

    def node_command(
        self,
        machine: Machine,
        authority: Path,
        key: Path | None,
        config: Mapping[str, object],
        port: int,
        superlink_port: int = 0,
        isolation: str = "subprocess",
    ) -> tuple[str, ...]:
        """Of a SuperNode on a machine, with what it trusts and what it proves itself by (None: nothing). `port` is its
        own; `superlink_port` another one than the SuperLink's, of a proxy."""
        program = (*machine.prefix, str(BIN / "flower-supernode"))
        superlink = f"{machine.address}:{superlink_port or self.port}"
        return commands.supernode(program, superlink, str(authority), str(key or ""), port, config, isolation)

    def flwr(self, *arguments: str) -> str:
        """Return the output of Flower's command line. Raises DeploymentError if it fails."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments], cwd=self.folder, env=self._user(), capture_output=True, encoding="utf-8"
        )
        if done.returncode:
            raise DeploymentError(f"flwr {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, config: Mapping[str, object]) -> "Run":
        """Start a run of this app; results go to `outputs` in the deployment's folder."""
        file = self.folder / "run.toml"
        lines = {"output-dir": str(self.folder / "outputs"), **config}
        file.write_text("".join(f"{key} = {_quoted(value)}\n" for key, value in lines.items()))
        said = self.flwr("run", str(self.app), CONNECTION, "--run-config", str(file), "--format", "json")
        return Run(self, str(json.loads(said)["run-id"]))

    def online(self, count: int, seconds: float = START) -> None:
        """Wait until so many nodes are online. Raises DeploymentError."""
        for node in self.nodes.values():  # their logs cost nothing to read
            node.until("SuperNode ID", seconds)
        deadline = time.monotonic() + seconds
        while True:
            listed = json.loads(self.flwr("supernode", "list", CONNECTION, "--format", "json"))["nodes"]
            there = [node for node in listed if node["status"] == "online"]
            if len(there) >= count:
                return
            if time.monotonic() > deadline:
                raise DeploymentError(f"{len(there)} of {count} nodes are online:\n{self.superlink.log[-3000:]}")
            time.sleep(0.5)

    def _superlink_command(self) -> tuple[str, ...]:
        if self.isolation == "process":
            (self.folder / "secret").write_bytes(os.urandom(32))
        return commands.superlink([str(BIN / "flower-superlink")], self._server(), "0.0.0.0", self.port, self.isolation)

    def _server(self) -> commands.Server:
        keys, folder = self.keys, self.folder
        files = (keys.authority.public, keys.server.public, keys.server.private, folder / "secret", folder / "state.db")
        return commands.Server(*map(str, files))

    def _await_port(self) -> None:
        deadline = time.monotonic() + START
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.superlink.process.poll() is not None:  # type: ignore[union-attr]
                    raise DeploymentError(f"the SuperLink does not answer:\n{self.superlink.log[-3000:]}") from None
                time.sleep(0.1)

    def _write_connection(self) -> None:
        (home := self.folder / "user").mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.keys.authority.public}"\n'
        )

    def _user(self) -> dict[str, str]:
        return os.environ | QUIET | {"FLWR_HOME": str(self.folder / "user")}

    def _reached_by(self) -> list[str]:
        return [addresses(number)[0] for number in range(len(self.names))] if self.apart else ["127.0.0.1"]


@dataclass(frozen=True)
class Run:
    """A run that was submitted."""

    deployment: Deployment
    id: str

    @property
    def status(self) -> str:
        """Return Flower's status, such as `finished:completed`, and its details."""
        said = self.deployment.flwr("list", CONNECTION, "--run-id", self.id, "--format", "json")
        (listed,) = json.loads(said)["runs"]
        return f"{listed['status']} {listed['status-details']}".removesuffix(" N/A")

    @property
    def log(self) -> str:
        """Return the log of the ServerApp."""
        return self.deployment.flwr("log", self.id, CONNECTION, "--show")

    @property
    def results(self) -> Path:
        """Return the newest results folder."""
        return (self.deployment.folder / "outputs" / "latest").resolve()

    @property
    def summary(self) -> dict[str, Any]:
        """Return summary.json, empty if there is none."""
        path = self.results / "summary.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl so far."""
        path = self.results / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until_round(self, number: int, seconds: float = 900.0) -> None:
        """Wait until a round is over. Raises DeploymentError."""
        self._wait(lambda: len(self.rounds) > number, f"ended round {number}", seconds)

    def until_refused(self, node: str, seconds: float = 900.0) -> None:
        """Wait until a round is over in which a node's reply did not count. Raises DeploymentError."""
        self._wait(lambda: any(node in refused for refused in self.refused), f"refused {node}", seconds)

    def until_trained(self, node: str, seconds: float = 900.0) -> None:
        """Wait until a round is over in which a node was asked to train. Raises DeploymentError."""
        self._wait(
            lambda: any(node == line["node"] for entry in self.rounds for line in entry["nodes"]),
            f"asked {node} to train",
            seconds,
        )

    @property
    def refused(self) -> list[dict[str, str]]:
        """Return by round which nodes' replies did not count, and why."""
        return [{line["node"]: line["refused"] for line in entry["nodes"] if line["refused"]} for entry in self.rounds]

    def end(self, seconds: float = 900.0) -> str:
        """Wait until the run has ended and return how."""
        self._wait(lambda: self.summary.get("status", "running") != "running", "ended", seconds)
        return self.until_finished()

    def until_finished(self) -> str:
        """Wait until Flower says that the run has ended and return how."""
        deadline = time.monotonic() + START
        while not (status := self.status).startswith("finished"):
            if time.monotonic() > deadline:
                raise DeploymentError(f"the run has not finished in {START:g} s: {status}\n{self.log[-6000:]}")
            time.sleep(2.0)
        return status

    def _wait(self, over: Callable[[], bool], what: str, seconds: float) -> None:
        """Poll `over`, which should be fast, until it is true. Stop waiting if the run has failed."""
        deadline, ask = time.monotonic() + seconds, time.monotonic() + ASK
        while not over():
            if (late := time.monotonic() > deadline) or time.monotonic() > ask:
                ask = time.monotonic() + ASK
                if late or (self.status.startswith("finished") and not over()):
                    raise DeploymentError(f"the run has not {what} in {seconds:g} s: {self.status}\n{self.log[-6000:]}")
            time.sleep(0.2)


def _quoted(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)

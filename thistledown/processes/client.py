"""Flower's command line, for a SuperLink that a command started."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thistledown.console import ANSI
from thistledown.processes import programs


class SuperLinkError(RuntimeError):
    """A SuperLink or a node that did not start or does not answer, with the end of its log, or an app that Flower does
    not accept."""


@dataclass(frozen=True)
class Client:
    """`flwr`, with the name of a connection in its config.toml, the folder it works in, and its environment."""

    connection: str
    work: Path
    environment: Mapping[str, str]

    def call(self, *arguments: str) -> str:
        """Return the output of `flwr`. Raises SuperLinkError if it fails."""
        done = subprocess.run(
            [executable("flwr"), *arguments],
            cwd=self.work,
            env=dict(self.environment),
            capture_output=True,
            encoding="utf-8",
            start_new_session=True,
        )
        if done.returncode:
            raise SuperLinkError(f"flwr {' '.join(arguments)} failed: {done.stdout}{done.stderr}")
        return ANSI.sub("", done.stdout)

    def submit(self, app: Path, config: str, file: Path, *more: str) -> "subprocess.Popen[str]":
        """Submit an app that is `bundled`, with a run config (TOML) that is written to `file`, and return the process
        that prints the run's log."""
        file.write_text(config, encoding="utf-8")
        return subprocess.Popen(
            [executable("flwr"), "run", str(app), self.connection, "--stream", "--run-config", str(file), *more],
            cwd=self.work,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def status(self, run_id: str) -> tuple[str, str]:
        """Return Flower's status of a run, such as `finished:completed`, and its details. Raises SuperLinkError."""
        said = self.call("list", self.connection, "--run-id", run_id, "--format", "json")
        try:
            run: dict[str, Any] = json.loads(said)["runs"][0]
            return str(run["status"]), str(run["status-details"])
        except (ValueError, LookupError) as error:
            raise SuperLinkError(f"Flower did not report how the run ended: {said}") from error


def bundled(app: Path, place: Path) -> Path:
    """Copy the files of an app that Flower bundles to the new folder `place` and return it.

    Raises SuperLinkError for an app that Flower does not accept.
    """
    from thistledown.processes.bundle import gathered  # imports Flower's command line, which no other command needs

    try:
        return gathered(app, place)
    except ValueError as error:
        raise SuperLinkError(f"Flower does not accept the app in {app}: {error}") from error


def connect(home: Path, name: str, address: str, trust: str, secret: str) -> None:
    """Make `home`, a Flower home with a connection and the secret that the SuperLink asks for. `trust` is the line of
    the connection that says how it is secured."""
    from flwr.cli.constant import ACCESS_TOKEN_STORE_KEY, AUTHN_TYPE_STORE_KEY, REFRESH_TOKEN_STORE_KEY
    from flwr.common.constant import AuthnType
    from flwr.supercore.credential_store.file_credential_store import FileCredentialStore

    home.mkdir()
    connection = f'address = "{address}"\n{trust}\n'
    (home / "config.toml").write_text(f'[superlink]\ndefault = "{name}"\n[superlink.{name}]\n{connection}')
    store = FileCredentialStore(home / "credentials.yaml")
    store.set(AUTHN_TYPE_STORE_KEY % address, AuthnType.OIDC.encode())
    for key in (ACCESS_TOKEN_STORE_KEY, REFRESH_TOKEN_STORE_KEY):
        store.set(key % address, secret.encode())


def program(name: str) -> list[str]:
    """Return the command of one of our programs; `-P` keeps its folder off the import path."""
    return [sys.executable, "-P", programs.__file__, name]


def executable(name: str) -> str:
    """Return the path of a program in this interpreter's environment."""
    return str(Path(sys.executable).parent / name)


def tail(log: Path, lines: int = 20) -> str:
    """Return the end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

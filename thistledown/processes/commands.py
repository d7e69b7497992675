"""The four programs of a deployment, as command lines: one place for `thistledown up`, the tests of deployments and the
files in deploy/.

The SuperLink and the executor of ServerApps are on the server. Every node has a SuperNode and an executor of its
ClientApps, which talk over loopback.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HERE = "127.0.0.1"
Command = tuple[str, ...]


@dataclass(frozen=True)
class Server:
    """Files of the server: certificates and keys as `thistledown certs` makes them, 32 secret bytes by which executors
    prove themselves, and the database, without which a restart forgets all nodes."""

    authority: str
    certificate: str
    key: str
    secret: str
    database: str


def superlink(
    program: Sequence[str], server: Server, host: str, port: str | int, isolation: str = "process"
) -> Command:
    """Return the command of a SuperLink that listens at `host` and `port`, with TLS and node authentication."""
    proof = ("--superexec-auth-secret-file", server.secret) if isolation == "process" else ()
    return (
        *program, "--host", host, "--port", str(port), "--ssl-ca-certfile", server.authority,
        "--ssl-certfile", server.certificate, "--ssl-keyfile", server.key, "--enable-supernode-auth",
        "--database", server.database, "--isolation", isolation, *proof,
    )  # fmt: skip


def serverapps(program: Sequence[str], server: Server, superlink: str) -> Command:
    """Return the command of the executor of ServerApps; `superlink` is the SuperLink's address, host:port."""
    trust = ("--root-certificates", server.authority)
    return (*program, "--runtime-api-address", superlink, *trust, "--superexec-auth-secret-file", server.secret)


def supernode(
    program: Sequence[str],
    superlink: str,
    authority: str,
    key: str,
    port: str | int,
    config: Mapping[str, object],
    isolation: str = "process",
) -> Command:
    """Return the command of a SuperNode that proves itself by `key` (empty: by nothing) and trusts what `authority` has
    signed. Its executor reaches it at `port` of loopback; `config` is the node config."""
    proof = ("--auth-supernode-private-key", key) if key else ()
    return (
        *program, "--superlink", superlink, "--root-certificates", authority, *proof,
        "--port", str(port), "--isolation", isolation, "--node-config", node_config(config),
    )  # fmt: skip


def clientapps(program: Sequence[str], port: str | int, *pins: str) -> Command:
    """Return the command of the executor of a node's ClientApps; `pins` are options that say which apps it runs. It
    speaks without TLS to loopback alone."""
    return (*program, "--insecure", "--runtime-api-address", f"{HERE}:{port}", *pins)


def node_config(config: Mapping[str, object]) -> str:
    """Return a node config as `flower-supernode` reads it: TOML values, separated by spaces."""
    return " ".join(f"{key}={_toml(value)}" for key, value in config.items())


def _toml(value: object) -> str:
    """Return a value in TOML. Flower ends a text at its next quotation mark, escaped or not."""
    return json.dumps(value, ensure_ascii=False).replace('\\"', "\\u0022").replace("\x7f", "\\u007f")

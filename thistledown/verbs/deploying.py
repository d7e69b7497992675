"""Commands for a deployment and the owners of its nodes: up, certs, app, policy, account, purge."""

import argparse
import sys
from pathlib import Path

from thistledown.verbs.flags import Commands, Say, add_app, add_overrides, listed


def add(commands: Commands) -> None:
    """Add these commands to the command line."""
    _add_up(commands)
    _add_certs(commands)
    _add_app(commands)
    _add_policy(commands)
    _add_account(commands)
    _add_purge(commands)


def _add_up(commands: Commands) -> None:
    up = commands.add_parser("up", help="deploy SuperLink and nodes with TLS on this machine, for a try")
    up.description = (
        "Start a SuperLink with TLS and a SuperNode for each file, and end them by Ctrl-C. Nothing stays but results."
    )
    up.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a node's own data: a file or folder")
    up.add_argument("--run", action="store_true", help="run one federation and end, instead of waiting for Ctrl-C")
    up.add_argument("--preset", metavar="PRESET", help="a TOML file with run-config keys, or the name of a preset")
    add_overrides(up)
    add_app(up)
    up.set_defaults(do=_up)


def _up(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.up import up

    return up(arguments.files, arguments.app, arguments.preset, arguments.overrides, arguments.run, say)


def _add_certs(commands: Commands) -> None:
    certs = commands.add_parser("certs", help="make the certificates and node keys of a deployment")
    certs.description = (
        "Create an authority, the SuperLink's certificate and a key pair per node. Files that exist are not changed."
    )
    certs.add_argument("folder", type=Path, metavar="DIR", help="where to write them; keep its ca.key there")
    certs.add_argument(
        "--names", type=listed, default=[], help="host names and addresses of the SuperLink, comma-separated"
    )
    certs.add_argument("--nodes", type=listed, default=[], help="names of nodes, comma-separated")
    certs.add_argument("--days", type=int, default=825, help="how long certificates are valid (default: 825)")
    certs.set_defaults(do=_certs)


def _certs(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.certs import Keys

    made = Keys(arguments.folder, arguments.names, arguments.nodes, arguments.days).make()
    say("\n".join(map(str, made)) if made else "nothing to do: all files exist")
    return True


def _add_app(commands: Commands) -> None:
    app = commands.add_parser("app", help="show what a clone sends to nodes as the app")
    what = app.add_subparsers(dest="what", required=True, metavar="what")
    digest = what.add_parser("hash", help="print the hash of the app, which a node's owner pins")
    digest.description = "Print the SHA-256 of the bundle that a run of this clone sends, for thistledown-superexec."
    digest.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="a clone; default: the installed one")
    digest.set_defaults(do=_hash)


def _hash(arguments: argparse.Namespace, say: Say) -> bool:
    from task.schema import ConfigError
    from thistledown.processes.bundle import app_hash
    from thistledown.settings import app_folder

    folder = app_folder(arguments.folder)
    try:
        say(app_hash(folder))
    except ValueError as error:
        raise ConfigError([f"Flower does not accept the app in {folder}: {error}"]) from error
    return True


def _add_policy(commands: Commands) -> None:
    policy = commands.add_parser("policy", help="explain what a node's owner allows")
    what = policy.add_subparsers(dest="what", required=True, metavar="what")
    check = what.add_parser("check", help="explain what a node with this policy does and refuses")
    check.description = "Check a policy file and explain what a node with it does and refuses."
    check.add_argument("file", type=Path, metavar="FILE", help="a TOML file, as the node config key policy names it")
    check.set_defaults(do=_policy)


def _policy(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.policy import explained

    say("\n".join(explained(arguments.file)))
    return True


def _add_account(commands: Commands) -> None:
    account = commands.add_parser("account", help="show the privacy budget that a node's rows have spent")
    account.description = "Show the privacy budget that a node has spent, by data set and run, and in total."
    account.add_argument(
        "folder", type=Path, nargs="?", metavar="DIR", help="the node's store-path or account-path; default: its store"
    )
    account.add_argument("--delta", type=float, default=1e-5, help="delta at which epsilon is shown (default: 1e-5)")
    account.set_defaults(do=_account)


def _account(arguments: argparse.Namespace, say: Say) -> bool:
    from client_app.account import AccountError
    from thistledown.commands.account import accounts

    try:
        for line in accounts(arguments.folder, arguments.delta):
            say(line)
    except AccountError as error:
        print(error, file=sys.stderr)
        return False
    return True


def _add_purge(commands: Commands) -> None:
    purge = commands.add_parser("purge", help="list what stores contain, and remove old items")
    purge.description = (
        "List kind, key, size, time since last use and source of every item. With --yes, items that can be created or "
        "fetched again are removed; others, such as accounts, only if --kind names their kind."
    )
    purge.add_argument("--store-path", type=Path, metavar="DIR", help="a store; default: this user's, server and node")
    purge.add_argument("--kind", type=listed, default=[], metavar="KINDS", help="only these, comma-separated")
    purge.add_argument("--older-than", default="", metavar="AGE", help="only items not used for this long: 30d, 12h")
    purge.add_argument("--yes", action="store_true", help="remove them; without this nothing is removed")
    purge.set_defaults(do=_purge)


def _purge(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.purge import purge

    purge(arguments.store_path, arguments.kind, arguments.older_than, arguments.yes, say)
    return True

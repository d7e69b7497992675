"""The `thistledown` command. Exit codes: 0 done, 2 invalid configuration, 3 failed run, 130 interrupted.

Slow imports happen in the commands, after the first line of output, so that `--help` is fast.
"""

import argparse
import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from thistledown.settings import Settings

PACKAGES = ("task", "strategies", "server_app", "client_app")  # imported by the command, in addition to its own
DONE, WRONG, FAILED, INTERRUPTED, TERMINATED = 0, 2, 3, 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a label name must not stop a run on an ASCII terminal
    arguments = _parser().parse_args(argv)
    _own_packages_first()
    with _signals():
        return _done(arguments)


def _done(arguments: argparse.Namespace) -> int:
    """Run the chosen command and return the exit code."""
    if arguments.command in ("run", "check", "export"):
        say("checking the configuration")
    from task.schema import ConfigError
    from task.storage.room import NoRoom, is_full, sentence
    from thistledown.processes.superlink import SuperLinkError

    try:
        commands = {
            "run": _run,
            "check": _check,
            "export": _export,
            "certs": _certs,
            "account": _account,
            "app": _app,
            "policy": _policy,
            "purge": _purge,
            "status": _status,
        }
        return commands[arguments.command](arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return WRONG
    except (SuperLinkError, NoRoom) as error:
        print(error, file=sys.stderr)
        return FAILED
    except OSError as error:
        if not is_full(error):
            raise
        print(sentence(error, Path.cwd()), file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        say("interrupted; all processes of the run are stopped")
        return INTERRUPTED


def say(line: str) -> None:
    """Print a line and flush, so that pipes get it at once."""
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thistledown",
        description="Federated fine-tuning of pretrained models where almost nothing crosses the wire.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('thistledown')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser("run", help="simulate a federation and leave its results in outputs/")
    run.add_argument("--verbose", action="store_true", help="show the whole log, Flower's and Ray's too")
    check = commands.add_parser("check", help="show what a run would do, without running it")
    for command in (run, check):
        command.description = f"{command.prog.rsplit(' ', 1)[-1]}: see the presets and the keys in pyproject.toml"
        command.add_argument(
            "preset", nargs="?", help="a TOML file with run-config keys, or the name of one in presets/"
        )
        command.add_argument(
            "-c",
            dest="overrides",
            metavar="'key=value ...'",
            action="append",
            default=[],
            help="run-config keys, as for `flwr run`: \"num-server-rounds=3 strategy='rbla'\"; may be repeated",
        )
        command.add_argument(
            "--app", type=Path, metavar="DIR", help="clone of thistledown to run; default: the installed one"
        )
    export = commands.add_parser("export", help="write the tuned model of a run, from its checkpoint")
    export.description = "Rebuild the tuned model from the checkpoint in a results folder. Only the base is needed."
    export.add_argument("results", type=Path, help="a results folder, such as outputs/latest")
    export.add_argument("--state", choices=("best", "last"), default="best", help="which round (default: best)")
    export.add_argument(
        "--to", type=Path, metavar="DIR", help="where to write it; default: model/ in the results folder"
    )
    certs = commands.add_parser("certs", help="make the certificates and node keys of a deployment")
    certs.description = (
        "Create an authority, the SuperLink's certificate and a key pair per node. Files that exist are not changed."
    )
    certs.add_argument("folder", type=Path, metavar="DIR", help="where to write them; keep its ca.key there")
    certs.add_argument(
        "--names", type=_listed, default=[], help="host names and addresses of the SuperLink, comma-separated"
    )
    certs.add_argument("--nodes", type=_listed, default=[], help="names of nodes, comma-separated")
    certs.add_argument("--days", type=int, default=825, help="how long certificates are valid (default: 825)")
    purge = commands.add_parser("purge", help="list what stores contain, and remove old items")
    purge.description = (
        "List kind, key, size, time since last use and source of every item. With --yes, items that can be created or "
        "fetched again are removed; others, such as accounts, only if --kind names their kind."
    )
    purge.add_argument("--store-path", type=Path, metavar="DIR", help="a store; default: this user's, server and node")
    purge.add_argument("--kind", type=_listed, default=[], metavar="KINDS", help="only these, comma-separated")
    purge.add_argument("--older-than", default="", metavar="AGE", help="only items not used for this long: 30d, 12h")
    purge.add_argument("--yes", action="store_true", help="remove them; without this nothing is removed")
    status = commands.add_parser("status", help="show the status of runs: running, completed, failed or interrupted")
    status.description = "Show the status of a run, or of all runs in a folder of outputs, and how to resume them."
    status.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), metavar="DIR", help="results, or outputs (default)"
    )
    account = commands.add_parser("account", help="show the privacy budget that a node's rows have spent")
    account.description = "Show the privacy budget that a node has spent, by data set and run, and in total."
    account.add_argument(
        "folder", type=Path, nargs="?", metavar="DIR", help="the node's store-path or account-path; default: its store"
    )
    account.add_argument("--delta", type=float, default=1e-5, help="delta at which epsilon is shown (default: 1e-5)")
    app = commands.add_parser("app", help="show what a clone sends to nodes as the app")
    what = app.add_subparsers(dest="what", required=True, metavar="what")
    digest = what.add_parser("hash", help="print the hash of the app, which a node's owner pins")
    digest.description = "Print the SHA-256 of the bundle that a run of this clone sends, for thistledown-superexec."
    digest.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="a clone; default: the installed one")
    policy = commands.add_parser("policy", help="explain what a node's owner allows")
    asked = policy.add_subparsers(dest="what", required=True, metavar="what")
    explain = asked.add_parser("check", help="explain what a node with this policy does and refuses")
    explain.description = "Check a policy file and explain what a node with it does and refuses."
    explain.add_argument("file", type=Path, metavar="FILE", help="a TOML file, as the node config key policy names it")
    run.description = "Simulate a federation on this machine; results go to outputs/ in the current directory."
    check.description = "Check a configuration and show what each node would do and send, without running it."
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from thistledown.commands.run import run

    return DONE if run(_settings(arguments), say, verbose=arguments.verbose) else FAILED


def _check(arguments: argparse.Namespace) -> int:
    from thistledown.commands.check import check

    check(_settings(arguments), say)
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from thistledown.commands.export import export

    export(arguments.results, arguments.state, arguments.to, say)
    return DONE


def _certs(arguments: argparse.Namespace) -> int:
    from thistledown.commands.certs import Keys

    made = Keys(arguments.folder, arguments.names, arguments.nodes, arguments.days).make()
    say("\n".join(map(str, made)) if made else "nothing to do: all files exist")
    return DONE


def _account(arguments: argparse.Namespace) -> int:
    from client_app.account import AccountError
    from thistledown.commands.account import accounts

    try:
        for line in accounts(arguments.folder, arguments.delta):
            say(line)
    except AccountError as error:
        print(error, file=sys.stderr)
        return FAILED
    return DONE


def _purge(arguments: argparse.Namespace) -> int:
    from thistledown.commands.purge import purge

    purge(arguments.store_path, arguments.kind, arguments.older_than, arguments.yes, say)
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    from thistledown.commands.status import status

    for line in status(arguments.folder):
        say(line)
    return DONE


def _policy(arguments: argparse.Namespace) -> int:
    from thistledown.commands.policy import explained

    say("\n".join(explained(arguments.file)))
    return DONE


def _app(arguments: argparse.Namespace) -> int:
    from task.schema import ConfigError
    from thistledown.processes.bundle import app_hash
    from thistledown.settings import app_folder

    folder = app_folder(arguments.folder)
    try:
        say(app_hash(folder))
    except ValueError as error:
        raise ConfigError([f"Flower does not accept the app in {folder}: {error}"]) from error
    return DONE


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _settings(arguments: argparse.Namespace) -> "Settings":
    from server_app.outputs import problem_of
    from task.schema import ConfigError
    from thistledown.settings import Settings

    settings = Settings.read(arguments.app, arguments.preset, arguments.overrides, Path.cwd())
    if problem := problem_of(Path(settings.config.server.output_dir)):
        raise ConfigError([problem])
    for key in settings.idle:
        say(f"note: {key} has no effect on this run (strategy = '{settings.config.strategy.name}')")
    return settings


@contextmanager
def _signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP leave through `finally` blocks, like Ctrl-C, so that no process is orphaned.

    Python cannot install handlers in a thread, such as a notebook's; there nothing changes.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # shells let background jobs ignore SIGINT
    chosen = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: leave, signal.SIGHUP: leave}
    before = {number: signal.signal(number, handler) for number, handler in chosen.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _own_packages_first() -> None:
    """Make our packages importable first. Their names are short, and PYTHONPATH may have others of the same name."""
    root = str(Path(__file__).resolve().parent.parent)
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        places = [str(Path(place).resolve().parent) for place in (found and found.submodule_search_locations) or ()]
        if root not in places and name not in sys.modules:
            sys.path.insert(0, root)
            return


if __name__ == "__main__":
    sys.exit(main())

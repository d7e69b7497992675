"""The `thistledown` command. Exit codes: 0 done, 2 invalid configuration, 3 failed run, 130 interrupted.

Slow imports happen in the commands, after the first line of output, so that `--help` is fast.
"""

import argparse
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from thistledown.arguments import parser

if TYPE_CHECKING:
    from thistledown.settings import Settings

PACKAGES = ("task", "strategies", "server_app", "client_app")  # imported by the command, in addition to its own
DONE, WRONG, FAILED, INTERRUPTED, CLOSED, TERMINATED = 0, 2, 3, 130, 141, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a label name must not stop a run on an ASCII terminal
    arguments = parser().parse_args(argv)
    _own_packages_first()
    with _signals():
        return _done(arguments)


def _done(arguments: argparse.Namespace) -> int:
    """Run the chosen command and return the exit code."""
    if arguments.command in ("run", "check", "export", "up"):
        say("checking the configuration")
    from task.schema import ConfigError
    from task.storage.room import NoRoom, is_full, sentence
    from thistledown.processes.client import SuperLinkError

    try:
        commands = {
            "run": _run,
            "check": _check,
            "new": _new,
            "export": _export,
            "predict": _predict,
            "keys": _keys,
            "presets": _presets,
            "certs": _certs,
            "up": _up,
            "account": _account,
            "app": _app,
            "policy": _policy,
            "purge": _purge,
            "status": _status,
        }
        return commands[arguments.command](arguments)
    except ConfigError as error:
        print(error.problems[0] if len(error.problems) == 1 else error, file=sys.stderr)
        return WRONG
    except (SuperLinkError, NoRoom) as error:
        print(error, file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # whoever reads the output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at the end
        return CLOSED
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


def _run(arguments: argparse.Namespace) -> int:
    from thistledown.commands.run import run

    return DONE if run(_settings(arguments), say, verbose=arguments.verbose) else FAILED


def _check(arguments: argparse.Namespace) -> int:
    from thistledown.commands.check import check

    check(_settings(arguments), say, arguments.rows)
    return DONE


def _new(arguments: argparse.Namespace) -> int:
    from thistledown.commands.new import Asked, new
    from thistledown.drafting.preset import FLAGS

    flags = {key: getattr(arguments, flag.removeprefix("--")) for key, flag in FLAGS.items()}
    given = {key: value for key, value in flags.items() if value is not None}
    new(Asked.of(arguments.data, arguments.to, arguments.force, given, arguments.overrides), say)
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from thistledown.commands.export import export

    export(arguments.results, arguments.state, arguments.to, say, merge=arguments.merge)
    return DONE


def _predict(arguments: argparse.Namespace) -> int:
    from thistledown.commands.predict import predict

    predict(
        arguments.results, arguments.state, arguments.overrides, arguments.values, arguments.file, arguments.to, say
    )
    return DONE


def _keys(arguments: argparse.Namespace) -> int:
    from thistledown.commands.keys import keys

    for line in keys(arguments.word):
        say(line)
    return DONE


def _presets(arguments: argparse.Namespace) -> int:
    from thistledown.commands.presets import presets
    from thistledown.settings import app_folder

    for line in presets(app_folder(arguments.app)):
        say(line)
    return DONE


def _up(arguments: argparse.Namespace) -> int:
    from thistledown.commands.up import up

    done = up(arguments.files, arguments.app, arguments.preset, arguments.overrides, arguments.run, say)
    return DONE if done else FAILED


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

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
from typing import NoReturn

from thistledown.arguments import parser

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
    if arguments.command in ("run", "compare", "check", "export", "up"):
        say("checking the configuration")
    from task.schema import ConfigError
    from task.storage.room import NoRoom, is_full, sentence
    from thistledown.processes.client import SuperLinkError

    try:
        return DONE if arguments.do(arguments, say) else FAILED
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

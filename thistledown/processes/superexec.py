"""`thistledown-superexec`: Flower's executor of ClientApps, with the slow imports done once and models kept loaded.

Flower starts one process per message, and most of its time before training goes into imports: Flower, torch,
transformers, peft. Here one process imports them once and forks for every run. The fork runs the code of its run, and
stays between messages with its model loaded, as long as the app agrees (`thistledown.processes.serving`). With
`--resident-runs 0` every message has a fork of its own. Only libraries are shared, none of our modules. The options are
those of `flower-superexec`, these, and `--app-hash` and `--app-hashes`: with one of them, only pinned ClientApps run
(`thistledown.processes.pins`). Without them, other apps are started as Flower does it.
"""

import argparse
import importlib
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thistledown.processes.pins import PinError, Pins
from thistledown.processes.residents import Residents
from thistledown.processes.serving import check_flower, forget_handlers, serve

if TYPE_CHECKING:
    from flwr.supercore.superexec.executor import ExecutionSpec

LOG = logging.getLogger("flwr")
WARM = (
    "flwr.supernode.runtime.run_clientapp",
    "torch",
    "torch._dynamo",  # the first step of an optimiser imports it
    "safetensors.torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.models.auto.tokenization_auto",
    "peft",
    "PIL.Image",
    "psutil",
)
APP = ("task", "strategies", "client_app")  # sent with a run; a module imported before could be another version
INFORMING = {"-h", "--help", "-V", "--version"}  # options with which nothing starts
LOOK_EVERY = "0.1"  # seconds between polls for a message; Flower's default is 1


@dataclass(frozen=True)
class Options:
    """What the node's owner decides: which apps run, of how many runs a process stays, and for how long without a
    message."""

    pins: Pins = Pins()
    runs: int = 1
    seconds: float = 600.0


def main() -> None:
    """Import the libraries, then run `flower-superexec` with an executor that forks."""
    options, rest = _options(sys.argv[1:])
    sys.argv[1:] = rest
    os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", LOOK_EVERY)
    os.environ.setdefault(
        "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
    )  # otherwise a check for GPUs would make CUDA unusable in forks
    from flwr.supercore.cli import flower_superexec

    if not INFORMING & set(sys.argv[1:]):
        warm()
        if options.runs:
            check_flower()
    if known := [name for name in APP if name in sys.modules]:
        raise RuntimeError(f"{', '.join(known)} must come with a run, but are imported already")
    flowers: Any = importlib.import_module("flwr.supercore.superexec.run_superexec")
    executor = _forking(options)
    flowers.get_executor = lambda *_, **__: executor  # Flower knows its own only
    flowers.AutoExecPlugin = executor.plugin
    flower_superexec()


def _options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """Return our options and the remaining ones, which are Flower's. Exits with a message if one cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    owner = parser.add_argument_group("which apps this node runs (default: every one that the server sends)")
    owner.add_argument(
        "--app-hash", action="append", default=[], metavar="HASH",
        help="run only the app with this hash, as `thistledown app hash` prints it; may be repeated",
    )  # fmt: skip
    owner.add_argument(
        "--app-hashes", action="append", default=[], type=Path, metavar="FILE",
        help="likewise, a file with one hash per line, which is read again for every message",
    )  # fmt: skip
    stays = parser.add_argument_group("processes that stay between the messages of a run, with the model loaded")
    stays.add_argument(
        "--resident-runs", type=_at_least(int, 0), default=Options.runs, metavar="N",
        help="of at most N runs at a time, one process each; 0: every message has a new process (default: %(default)s)",
    )  # fmt: skip
    stays.add_argument(
        "--resident-seconds", type=_at_least(float, 1), default=Options.seconds, metavar="S",
        help="a process ends after S seconds without a message (default: %(default)g)",
    )  # fmt: skip
    own, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help())
    options = Options(Pins(own.app_hash, own.app_hashes), own.resident_runs, own.resident_seconds)
    try:
        if options.pins:
            LOG.info("this node runs the apps %s", ", ".join(sorted(options.pins.read())))
        elif not INFORMING & set(rest):
            LOG.warning("this node runs any app that the server sends: pin those that it may run with --app-hash")
    except PinError as error:
        parser.exit(2, f"{error}\n")
    return options, rest


def _at_least(kind: type[int] | type[float], low: int) -> Callable[[str], float]:
    """Return what reads a finite number that is not below `low`."""

    def read(text: str) -> float:
        noun = "a whole number" if kind is int else "a number"
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r:.80} is not {noun} from {low} on")
        return value

    return read


def warm() -> None:
    """Import what every ClientApp of ours needs."""
    for name in WARM:
        importlib.import_module(name)


def _forking(options: Options) -> Any:
    """Return the executor that forks."""
    from flwr.proto.task_pb2 import Task
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import LaunchResult, SubprocessExecutor
    from flwr.supercore.superexec.plugin import AutoExecPlugin

    residents = Residents(options.runs)

    class Plugin(AutoExecPlugin):
        """What hands tasks to the executor; it also says of which run they are."""

        def launch_task(self, token: str, task: Task) -> LaunchResult:
            executor.run = task.run_id
            return super().launch_task(token, task)

    class Forking(SubprocessExecutor):
        """Executor that forks for the ClientApps of a run."""

        plugin = Plugin
        run = 0

        def launch(self, spec: "ExecutionSpec") -> LaunchResult:
            if spec.task_type != TaskType.CLIENT_APP:
                if options.pins:
                    return LaunchResult.failed(f"apps are pinned, so only ClientApps are run, not {spec.task_type}")
                return super().launch(spec)
            try:
                taken = residents.hand_over(
                    (self.run, spec.fab_hash), spec.token, lambda pipe: _work(pipe, spec, options)
                )
            except OSError as error:
                return LaunchResult.failed(f"there can be no new process: {error}")
            return LaunchResult.accepted() if taken else LaunchResult.failed("a new process did not take its message")

        def reconcile(self) -> None:
            residents.reap()

        def close(self) -> None:
            residents.close()

    executor = Forking()
    return executor


def _work(pipe: Connection, spec: "ExecutionSpec", options: Options) -> int:
    """Serve messages in a fork; return its exit code."""
    try:
        _as_if_started()
        LOG.info("Start `flwr-clientapp` process")
        serve(spec, pipe, options.pins, options.runs > 0, options.seconds)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except BaseException:  # noqa: BLE001  no caller would report it
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return 0


def _as_if_started() -> None:
    """Put a fork into the state of a new process: no exit handlers, no other's signal handlers, its own random seed."""
    import numpy as np

    forget_handlers()
    np.random.seed()


if __name__ == "__main__":
    main()

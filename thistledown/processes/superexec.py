"""`thistledown-superexec`: Flower's executor of ClientApps, with the slow imports done once.

Flower starts one process per message, and most of its time before training goes into imports: Flower, torch,
transformers, peft. Here one process imports them once and forks for every message. Each message still has its own
process, which runs the code of its run and then exits. Only libraries are shared, none of our modules. The options are
those of `flower-superexec`, plus `--app-hash` and `--app-hashes`: with one of these, only pinned ClientApps run
(`thistledown.processes.pins`). Without them, other apps are started as Flower does it.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from thistledown.processes.pins import PinError, Pins, enforce

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
LOOK_EVERY = "0.1"  # seconds between polls for a message; Flower's default is 1


def main() -> None:
    """Import the libraries, then run `flower-superexec` with an executor that forks."""
    pins, rest = _pins(sys.argv[1:])
    sys.argv[1:] = rest
    os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", LOOK_EVERY)
    os.environ.setdefault(
        "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
    )  # otherwise a check for GPUs would make CUDA unusable in forks
    from flwr.supercore.cli import flower_superexec

    if not {"-h", "--help", "-V", "--version"} & set(sys.argv[1:]):
        warm()
    if known := [name for name in APP if name in sys.modules]:
        raise RuntimeError(f"{', '.join(known)} must come with a run, but are imported already")
    flowers = importlib.import_module("flwr.supercore.superexec.run_superexec")
    flowers.get_executor = lambda *_, **__: _forking(pins)  # type: ignore[attr-defined]  # Flower knows its own only
    flower_superexec()


def _pins(argv: Sequence[str]) -> tuple[Pins, list[str]]:
    """Return the pins and the remaining options, which are Flower's. Exits with a message if a pin cannot be read."""
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
    own, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help())
    pins = Pins(own.app_hash, own.app_hashes)
    try:
        if pins:
            LOG.info("this node runs the apps %s", ", ".join(sorted(pins.read())))
        elif not {"-h", "--help", "-V", "--version"} & set(rest):
            LOG.warning("this node runs any app that the server sends: pin those that it may run with --app-hash")
    except PinError as error:
        parser.exit(2, f"{error}\n")
    return pins, rest


def warm() -> None:
    """Import what every ClientApp of ours needs."""
    for name in WARM:
        importlib.import_module(name)


def _forking(pins: Pins) -> object:
    """Return the executor that forks."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import LaunchResult, SubprocessExecutor

    class Forking(SubprocessExecutor):
        """Executor that forks for every ClientApp."""

        def launch(self, spec: "ExecutionSpec") -> LaunchResult:
            if spec.task_type != TaskType.CLIENT_APP:
                if pins:
                    return LaunchResult.failed(f"apps are pinned, so only ClientApps are run, not {spec.task_type}")
                return super().launch(spec)
            if os.fork() == 0:
                _work(spec, pins)
            return LaunchResult.accepted()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are not waited for: they report to the SuperNode
    return Forking()


def _work(spec: "ExecutionSpec", pins: Pins) -> NoReturn:
    """Serve one message in a fork, then exit without running the parent's exit handlers."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _as_if_started()
        if pins:
            enforce(pins)
        _serve(spec)
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:  # noqa: BLE001  no caller would report it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _as_if_started() -> None:
    """Put a fork into the state of a new process: no exit handlers, default signal handlers, its own random seed."""
    import numpy as np
    from flwr.supercore.exit import exit_handler

    exit_handler.registered_exit_handlers.clear()
    for number in exit_handler.SIGNAL_TO_EXIT_CODE:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    np.random.seed()


def _serve(spec: "ExecutionSpec") -> None:
    from flwr.supercore.tls import validate_and_resolve_root_certificates
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    LOG.info("Start `flwr-clientapp` process")
    run_clientapp(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=spec.insecure,
        certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
        parent_pid=spec.parent_pid,
        runtime_dependency_install=spec.runtime_dependency_install,
    )


if __name__ == "__main__":
    main()

"""`thistledown-superexec`: Flower's executor of ClientApps, after the imports that each would do for itself.

Flower starts a process a message, and most of what such a process does before it trains is to import: Flower, torch,
transformers, peft. Here one process imports them once and forks for every message. A message still has a process of its
own, which runs the code that the run brought and is gone with it; only libraries are shared, nothing of ours. Options
are those of `flower-superexec`, and `--app-hash` and `--app-hashes`: with one of these, nothing but a ClientApp that is
pinned is run (`thistledown.processes.pins`). Without them, what is not a ClientApp is started as Flower does.
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
    "torch._dynamo",  # an optimiser's first step imports it
    "safetensors.torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.models.auto.tokenization_auto",
    "peft",
    "PIL.Image",
    "psutil",
)
APP = ("task", "strategies", "client_app")  # come with a run; what is imported before would be another version
LOOK_EVERY = "0.1"  # seconds between looks for a message; Flower's own is 1


def main() -> None:
    """Import, then run `flower-superexec` with an executor that forks."""
    pins, rest = _pins(sys.argv[1:])
    sys.argv[1:] = rest
    os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", LOOK_EVERY)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to look for a GPU otherwise forbids it to forks
    from flwr.supercore.cli import flower_superexec

    if not {"-h", "--help", "-V", "--version"} & set(sys.argv[1:]):
        warm()
    if known := [name for name in APP if name in sys.modules]:
        raise RuntimeError(f"{', '.join(known)} must come with a run, and are imported already")
    flowers = importlib.import_module("flwr.supercore.superexec.run_superexec")
    flowers.get_executor = lambda *_, **__: _forking(pins)  # type: ignore[attr-defined]  # Flower knows its own only
    flower_superexec()


def _pins(argv: Sequence[str]) -> tuple[Pins, list[str]]:
    """The pins, and the options that are Flower's. Exits with a sentence where a pin cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    owner = parser.add_argument_group("which apps this node runs (default: every one that the server sends)")
    owner.add_argument(
        "--app-hash", action="append", default=[], metavar="HASH",
        help="run this app, as `thistledown app hash` prints it, and no other; may be repeated",
    )  # fmt: skip
    owner.add_argument(
        "--app-hashes", action="append", default=[], type=Path, metavar="FILE",
        help="likewise, a file with a hash a line, which is read anew for every message",
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
    """Import what every ClientApp of ours would."""
    for name in WARM:
        importlib.import_module(name)


def _forking(pins: Pins) -> object:
    """An executor for Flower."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import LaunchResult, SubprocessExecutor

    class Forking(SubprocessExecutor):
        """Forks for a ClientApp."""

        def launch(self, spec: "ExecutionSpec") -> LaunchResult:
            if spec.task_type != TaskType.CLIENT_APP:
                if pins:
                    return LaunchResult.failed(f"apps are pinned, so nothing but ClientApps is run: {spec.task_type}")
                return super().launch(spec)
            if os.fork() == 0:
                _work(spec, pins)
            return LaunchResult.accepted()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a fork ended: the SuperNode is told by itself
    return Forking()


def _work(spec: "ExecutionSpec", pins: Pins) -> NoReturn:
    """The life of a fork: serve one message, and leave nothing of the parent's to be ended twice."""
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
    except BaseException:  # noqa: BLE001  there is nobody above to say it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _as_if_started() -> None:
    """What differs in a process that was started: no exit handlers, chance of its own, signals as they come."""
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

"""`thistledown-superexec`: Flower's executor of ClientApps, after the imports that each would do for itself.

Flower starts a process a message, and most of what such a process does before it trains is to import: Flower, torch,
transformers, peft. Here one process imports them once and forks for every message. A message still has a process of its
own, which runs the code that the run brought and is gone with it; only libraries are shared, nothing of ours. Options
are those of `flower-superexec`; what is not a ClientApp is started as Flower does.
"""

import importlib
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

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
    os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", LOOK_EVERY)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to look for a GPU otherwise forbids it to forks
    from flwr.supercore.cli import flower_superexec

    if not {"-h", "--help", "-V", "--version"} & set(sys.argv[1:]):
        warm()
    if known := [name for name in APP if name in sys.modules]:
        raise RuntimeError(f"{', '.join(known)} must come with a run, and are imported already")
    flowers = importlib.import_module("flwr.supercore.superexec.run_superexec")
    flowers.get_executor = lambda *_, **__: _forking()  # type: ignore[attr-defined]  # Flower knows its own only
    flower_superexec()


def warm() -> None:
    """Import what every ClientApp of ours would."""
    for name in WARM:
        importlib.import_module(name)


def _forking() -> object:
    """An executor for Flower."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import LaunchResult, SubprocessExecutor

    class Forking(SubprocessExecutor):
        """Forks for a ClientApp."""

        def launch(self, spec: "ExecutionSpec") -> LaunchResult:
            if spec.task_type != TaskType.CLIENT_APP:
                return super().launch(spec)
            if os.fork() == 0:
                _work(spec)
            return LaunchResult.accepted()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a fork ended: the SuperNode is told by itself
    return Forking()


def _work(spec: "ExecutionSpec") -> NoReturn:
    """The life of a fork: serve one message, and leave nothing of the parent's to be ended twice."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _as_if_started()
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

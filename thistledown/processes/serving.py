"""What a process of a node does: serve one message of a run or, with the app and its model loaded, one after another.

Flower's `run_clientapp` pulls a message, runs the app, pushes the reply and ends its process. Here it returns instead,
as long as the app may serve another message of the run: a package `client_app` says so by a function `stays`, which is
given the message. An app that says nothing, fails, or has answered the last message of its run, ends as Flower has it.
The next message then has a fresh process.
"""

import ctypes
import gc
import hashlib
import importlib
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from thistledown.processes.pins import Pins, enforce

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.supercore.superexec.executor import ExecutionSpec

LOG = logging.getLogger("flwr")
FLOWERS = "flwr.supernode.runtime.run_clientapp"
REPLACED = ("install_from_fab", "get_load_client_app_fn", "flwr_exit")  # functions that Flower's module imports
APP, STAYS = "client_app", "stays"
TAKEN = b"taken"  # the answer to a token, before anything is asked of the SuperNode


class AnotherApp(RuntimeError):
    """A message of another run, or with another app, than the process has loaded. The message goes to the server."""


def check_flower() -> None:
    """Raise RuntimeError if this version of Flower lacks the functions that are replaced."""
    flowers = importlib.import_module(FLOWERS)
    if lacking := [name for name in REPLACED if not hasattr(flowers, name)]:
        raise RuntimeError(
            f"this Flower serves messages in another way ({', '.join(lacking)}): no process can stay between messages; "
            "start with --resident-runs 0"
        )


def serve(spec: "ExecutionSpec", channel: Connection, pins: Pins, stays: bool, seconds: float) -> None:
    """Serve the messages whose tokens come through the channel; return when it is closed, or silent for `seconds`.

    Flower ends the process after the first message unless it `stays`, and after the last one in any case.
    """
    from flwr.supercore.tls import validate_and_resolve_root_certificates

    flowers: Any = importlib.import_module(FLOWERS)
    if pins:
        enforce(pins)
    if stays and not spec.runtime_dependency_install:  # Flower removes an app's own dependencies after every message
        _Stay().replace(flowers)
    parent = spec.parent_pid
    certificates = validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure)
    while (token := _next(channel, seconds)) is not None:
        flowers.run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=token,
            insecure=spec.insecure,
            certificates=certificates,
            parent_pid=parent,
            runtime_dependency_install=spec.runtime_dependency_install,
        )
        parent = None  # Flower watches it since the first message
        forget_handlers()
        return_memory()


def forget_handlers() -> None:
    """Remove exit handlers and signal handlers of Flower: they belong to another process, or to an earlier message."""
    from flwr.supercore.exit import exit_handler

    exit_handler.registered_exit_handlers.clear()
    for number in exit_handler.SIGNAL_TO_EXIT_CODE:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End this process in the regular way, so that its temporary files go with it."""
    raise SystemExit(128 + number)


def return_memory() -> None:
    """Return to the system what a message has freed: allocators keep it otherwise, such as room for activations."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc
        trim(0)


def _next(channel: Connection, seconds: float) -> str | None:
    """Return the token of the next message, or None if there will be none."""
    try:
        if not channel.poll(seconds):
            LOG.info("no message of this run came for %g s: its process ends", seconds)
            return None
        token = channel.recv_bytes().decode()
        channel.send_bytes(TAKEN)
    except (EOFError, OSError):  # the executor needs the memory for another run, or has ended
        return None
    return token


@dataclass
class _Stay:
    """What a process knows from one message to the next."""

    loaded: tuple[int, str] | None = None  # the run, and the SHA-256 of the app's bundle
    goes_on: bool = False  # whether the app may serve another message

    def replace(self, flowers: Any) -> None:
        """Put our functions round those with which Flower unpacks an app, loads it, and ends."""
        from flwr.supercore.exit import ExitCode, exit_handler

        install, loader, leave = flowers.install_from_fab, flowers.get_load_client_app_fn, flowers.flwr_exit

        def installed(content: bytes, **options: Any) -> Any:
            self._check(content)
            return install(content, **options)

        def loads(*given: Any, **named: Any) -> Callable[..., Any]:
            load = loader(*given, **named)
            return lambda *about: self._answering(load(*about))

        def left(code: int, **rest: Any) -> None:
            if code != ExitCode.SUCCESS or not self.goes_on:
                leave(code=code, **rest)
            self.goes_on = False
            for early in (True, False):  # Flower's own order: they push the outcome and close the connection
                exit_handler.trigger_exit_handlers(run_before_force_exit=early)

        flowers.install_from_fab, flowers.get_load_client_app_fn, flowers.flwr_exit = installed, loads, left

    def _check(self, content: bytes) -> None:
        """Raise AnotherApp unless the bundle and the run are those of the first message."""
        from flwr.supercore.task_identity import TaskIdentity

        found = (TaskIdentity.run_id, hashlib.sha256(content).hexdigest())
        if self.loaded is None:
            self.loaded = found
        elif self.loaded != found:
            LOG.error("run %d with the app %s came to the process of run %d with the app %s", *found, *self.loaded)
            raise AnotherApp("the app of this run is not the one that its earlier messages had; ask again")

    def _answering(self, app: "Callable[[Message, Context], Message]") -> "Callable[[Message, Context], Message]":
        """Return the app, which is asked after every message whether it may stay."""

        def answer(message: "Message", context: "Context") -> "Message":
            reply = app(message, context)
            asked = getattr(sys.modules.get(APP), STAYS, None)
            self.goes_on = callable(asked) and asked(message) is True
            return reply

        return answer

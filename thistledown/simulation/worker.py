"""What a worker process does: it answers messages for one simulated node after another."""

import logging
from importlib import import_module
from multiprocessing.connection import Connection

from task.config import TaskConfig
from task.kinds import registry as kinds
from task.tunings.base import PEFT
from thistledown.simulation.frames import Record

LIBRARIES = ("client_app.training", "transformers.modeling_utils")  # that a node needs; the imports take seconds


def needed(config: TaskConfig) -> list[str]:
    """Return the modules that nodes need, to be imported once for all workers."""
    adapter = config.tuning.adds and config.tuning.saved_as(kinds.of(config)) == PEFT
    return [*LIBRARIES, *(["peft"] if adapter else [])]


def load(modules: list[str]) -> None:
    """Import modules."""
    for name in modules:
        import_module(name)


def serve(connection: Connection) -> None:
    """Answer the messages that arrive until the connection is closed.

    A reply carries the node's context, as the next message of the node may go to another worker.
    """
    import torch

    import client_app
    from client_app.public_errors import in_process
    from thistledown.simulation import frames
    from thistledown.simulation.grid import answered, identity
    from thistledown.simulation.log import handled

    torch.set_num_threads(1)  # until a message says how many
    with identity(), in_process():
        while True:
            try:
                message, context, _ = frames.receive(connection)
            except (EOFError, OSError):  # the run is over
                return
            kept = _Kept()
            with handled(kept):
                reply = answered(client_app.app, message, context)
            assert reply is not None  # a ClientApp answers every message
            frames.send(connection, reply, context, kept.records)
            del message, reply  # they may be as large as the model, and the next message takes its time


class _Kept(logging.Handler):
    """Keeps records for the process of the server, which logs them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[Record] = []

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info and record.exc_info[0]
        traceback = logging.Formatter().formatException(record.exc_info) if raised and record.exc_info else ""
        self.records.append((record.levelno, record.getMessage(), traceback))

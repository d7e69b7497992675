"""A grid whose nodes answer in worker processes, several at a time, with the bits of one after another.

Messages go to whichever worker is free, in the order sent. A node's context goes with its message and returns with the
reply, so a node has one message at a time. Bits do not depend on the worker: nodes draw by names and seeds, and the
server takes replies in the order sent.
"""

import signal
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Message

import client_app
from task.config import TaskConfig
from thistledown.simulation import frames
from thistledown.simulation.grid import InProcessGrid, error_reply, unavailable
from thistledown.simulation.log import log_again
from thistledown.simulation.template import Template
from thistledown.simulation.worker import needed

LONGEST_WAIT = 1.0  # seconds
AHEAD = 2  # replies per worker that may wait for the server, so that memory does not depend on the cohort's size


class WorkerGrid(InProcessGrid):
    """A grid of `num_nodes` nodes on `workers` processes, which start and end with the context."""

    def __init__(
        self,
        task: TaskConfig,
        workers: int,
        num_nodes: int,
        node_configs: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(client_app.app, num_nodes, node_configs)
        self._most_waiting = AHEAD * workers
        self._queue: dict[str, Message] = {}  # messages that no worker has yet, oldest first
        self._at_work: set[int] = set()  # nodes that a worker answers for
        self._wanted = ""  # the message whose reply the server waits for
        self._changed = threading.Condition()
        self._closed = False
        self._failure: Exception | None = None
        self._template = Template(needed(task), task.device)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def __enter__(self) -> "WorkerGrid":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._template.close()
        for thread in self._threads:
            thread.join()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue the messages. Returns their ids."""
        with self._changed:
            ids = [self._queued(message) for message in messages]
            self._changed.notify_all()
        return ids

    def _queued(self, message: Message) -> str:
        message_id = self.numbered(message)
        if message.metadata.dst_node_id in self.contexts:
            self._queue[message_id] = message
        else:
            self.waiting[message_id] = unavailable(message)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that have arrived. Each reply is returned once."""
        wanted = list(message_ids)
        with self._changed:
            if self._failure is not None:
                raise self._failure
            found = super().pull_messages(wanted)
            self._wanted = next(iter(wanted), "")
            self._changed.notify_all()
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to these messages that arrive within `timeout` seconds."""
        deadline, replies = time.monotonic() + (timeout or float("inf")), list[Message]()
        for message_id in self.push_messages(messages):
            while not (found := self.pull_messages([message_id])) and time.monotonic() < deadline:
                self.wait(min(LONGEST_WAIT, deadline - time.monotonic()))
            replies += found
        return replies

    def wait(self, seconds: float) -> None:
        """Wait until the reply that was last asked for arrives, but no longer than `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted in self.waiting or self._failure is not None, seconds)

    def _work(self) -> None:
        """Have one worker answer messages until the grid is closed. What goes wrong here fails the run."""
        try:
            worker = _Worker(self._template)
            while (message := self._next()) is not None:
                self._answered(message, *worker.answered(message, self.contexts[message.metadata.dst_node_id]))
                del message  # it may be as large as the model, and the next one may be long in coming
        except Exception as error:  # noqa: BLE001 - raised again in the server's thread
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _next(self) -> Message | None:
        """Return the next message for a worker, or None if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._due())
            if self._closed:
                return None
            message = self._queue.pop(self._first())
            self._at_work.add(message.metadata.dst_node_id)
            return message

    def _first(self) -> str:
        """Return the oldest message of a node that is not at work; empty if there is none. A node is still at work for
        an earlier message if the server has given up waiting for that."""
        free = (name for name, message in self._queue.items() if message.metadata.dst_node_id not in self._at_work)
        return next(free, "")

    def _due(self) -> bool:
        """Return whether the next message may be answered now: what the server waits for may, and what it will ask for
        later, unless replies pile up. Replies that it has given up waiting for do not count."""
        if not (first := self._first()):
            return False
        wanted = _number(self._wanted)
        early = sum(_number(message_id) > wanted for message_id in self.waiting)
        return early < self._most_waiting or _number(first) <= wanted

    def _answered(self, message: Message, reply: Message, context: Context, records: list[frames.Record]) -> None:
        for record in records:
            log_again(record)
        with self._changed:
            self.contexts[context.node_id] = context
            self._at_work.remove(context.node_id)
            self.waiting[message.metadata.message_id] = reply
            self._changed.notify_all()


class _Worker:
    """The server's end of a worker process."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._connection, self._pid = template.worker()

    def answered(self, message: Message, context: Context) -> tuple[Message, Context, list[frames.Record]]:
        """Return the reply, the node's context after it, and what was logged; an error reply if the process dies, which
        is replaced. Raises RunFailed if it cannot be."""
        try:
            frames.send(self._connection, message, context)
            return frames.receive(self._connection)
        except (EOFError, OSError):
            return error_reply(message, self._replaced()), context, []

    def _replaced(self) -> str:
        """Put a new process in the place of one that died, and return how it ended."""
        self._connection.close()
        code = self._template.status(self._pid)
        self._connection, self._pid = self._template.worker()
        return f"its process ended with exit code {code}" if code >= 0 else _killed(-code)


def _number(message_id: str) -> int:
    """Return the place of a message in the order sent; -1 for none."""
    return int(message_id.rpartition("-")[2] or -1)


def _killed(number: int) -> str:
    """Return the reason for a process that a signal ended."""
    named = f"its process was ended by {signal.Signals(number).name}"
    return f"{named}; if nobody sent it, memory ran out: use fewer workers" if number == signal.SIGKILL else named

"""Flower's grid in one process: messages pass through Flower's own encoding to the ClientApp, one at a time.

Nodes are like those of Flower's simulation: random ids, and `partition-id` and `num-partitions` in their node config.
They work one after another, because they share the model of the process.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client_app.public_errors import in_process

RUN, SERVER = 7, 1  # Flower's ids of the run and of the server
UNAVAILABLE, FAILED = 5, 2  # Flower's codes of errors


class InProcessGrid(Grid):
    """A grid of `num_nodes` nodes that answer by calling `app`; `node_configs` adds to the node config of a partition.

    `ids` seeds the nodes' random ids, on which no result depends.
    """

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int,
        node_configs: Mapping[int, Mapping[str, Any]] | None = None,
        ids: int = 0,
    ) -> None:
        self.app = app
        self.ids = random.Random(f"{ids}/{num_nodes}")
        node_ids = self.ids.sample(range(10**6, 10**7), num_nodes)
        self.partitions = dict(zip(node_ids, range(num_nodes), strict=True))
        self.contexts = {}
        for node_id, partition in self.partitions.items():
            own = {"partition-id": partition, "num-partitions": num_nodes, **(node_configs or {}).get(partition, {})}
            self.contexts[node_id] = Context(RUN, node_id, own, RecordDict(), {})
        self.waiting: dict[str, Message | None] = {}
        self._numbers = itertools.count()
        self._run: Run | None = None

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver every message to its node and store the reply. Returns the ids of the messages."""
        ids = []
        for message in messages:
            ids.append(self.numbered(message))
            self.waiting[ids[-1]] = self.delivered(message)
        return ids

    def numbered(self, message: Message) -> str:
        """Give the message an id and return it."""
        message_id = f"message-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = message_id
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages. Each reply is returned once."""
        found = [self.waiting.pop(message_id) for message_id in message_ids if message_id in self.waiting]
        return [message for message in found if message is not None]

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self.contexts)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to these messages that arrive within `timeout` seconds."""
        deadline, replies = time.monotonic() + (timeout or float("inf")), []
        for message in messages:
            if time.monotonic() < deadline:
                replies += self.pull_messages(self.push_messages([message]))
        return replies

    def set_run(self, run: Run) -> None:
        """Set Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return Flower's description of the run. Raises RuntimeError if it was not set."""
        if self._run is None:
            raise RuntimeError("the grid has no run; call set_run first")
        return self._run

    def delivered(self, message: Message) -> Message | None:
        """Return a node's reply as the server reads it, or an error reply if the node raises, as a SuperNode does."""
        if (context := self.contexts.get(message.metadata.dst_node_id)) is None:
            return unavailable(message)
        return answered(self._through, message, context)

    def _through(self, message: Message, context: Context) -> Message | None:
        reply = self.answer(through_wire(message), context)
        return reply and through_wire(reply)

    def answer(self, message: Message, context: Context) -> Message | None:
        """Return the node's reply. Like those of simulated nodes, its messages may name files of this machine."""
        with in_process():
            return self.app(message, context)


def answered(app: Callable[[Message, Context], Message | None], message: Message, context: Context) -> Message | None:
    """Return the reply of a node's app, or an error reply if it raises, as a SuperNode does."""
    before, TaskIdentity.node_id = TaskIdentity.node_id, context.node_id
    try:
        return app(message, context)
    except Exception as error:  # noqa: BLE001 - a SuperNode makes an error reply of any error
        return error_reply(message, f"{type(error)}:<{str(error)!r}>")
    finally:
        TaskIdentity.node_id = before


def error_reply(message: Message, reason: str) -> Message:
    """Return Flower's reply for a node whose app failed."""
    return Message(Error(code=FAILED, reason=reason), reply_to=message)


def unavailable(message: Message) -> Message:
    """Return Flower's reply for a node that is not connected."""
    return Message(Error(code=UNAVAILABLE, reason="Node Unavailable"), reply_to=message)


@contextmanager
def identity() -> Iterator[None]:
    """Give the process the identity of a run's server within this block, which Flower's messages need."""
    before = TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, RUN, SERVER
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id = before


def through_wire(message: Message) -> Message:
    """Return the message as the other side reads it: deflated to bytes and inflated again."""
    with no_object_id_recompute():  # as Flower's own grids: every object is hashed once
        contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        name = message.object_id
    back = cast(Message, inflate_object_from_contents(name, contents))
    back.metadata.__dict__["_message_id"] = message.metadata.message_id
    return back

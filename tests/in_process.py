"""Flower's grid without Ray: messages go through Flower's real encoding to the real ClientApp, one at a time.

Simulated nodes are as Ray's simulation makes them: random ids, `partition-id` and `num-partitions`.
"""

import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

SERVER = 1
Handler = Callable[[Message, Context], Message]


class InProcessGrid(Grid):
    """`spoil` may change a reply (or raise) before it is delivered: (partition, message type, reply) -> reply."""

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int,
        node_configs: dict[int, dict[str, Any]] | None = None,
        spoil: Callable[[int, str, Message], Message | None] | None = None,
    ) -> None:
        self.app, self.spoil = app, spoil
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 7, SERVER
        ids = random.Random(num_nodes).sample(range(10**6, 10**7), num_nodes)
        self.contexts = {}
        for partition, node_id in enumerate(ids):
            own = {"partition-id": partition, "num-partitions": num_nodes} | (node_configs or {}).get(partition, {})
            self.contexts[node_id] = Context(
                run_id=7, node_id=node_id, node_config=own, state=RecordDict(), run_config={}
            )
        self.partitions = dict(zip(ids, range(num_nodes), strict=True))
        self.waiting: dict[str, Message | None] = {}
        self.log: list[tuple[int, str]] = []  # (partition, message type) in the order sent
        self._counter = itertools.count()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message_id = f"message-{next(self._counter)}"
            message.metadata.__dict__["_message_id"] = message_id
            ids.append(message_id)
            self.waiting[message_id] = self._answer(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = [self.waiting.pop(i) for i in message_ids if i in self.waiting]
        return [message for message in found if message is not None]

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def _answer(self, message: Message) -> Message | None:
        node_id = message.metadata.dst_node_id
        partition, kind = self.partitions[node_id], message.metadata.message_type
        self.log.append((partition, kind))
        try:
            TaskIdentity.node_id = node_id
            reply: Message | None = self.app(through_wire(message), self.contexts[node_id])
            if self.spoil is not None:
                reply = self.spoil(partition, kind, reply)
            return reply and through_wire(reply)
        except Exception as error:  # noqa: BLE001 - what a SuperNode does: any error becomes an error reply
            return Message(Error(code=2, reason=f"{type(error)}:<{str(error)!r}>"), reply_to=message)
        finally:
            TaskIdentity.node_id = SERVER

    # What the abstract class asks for and our round loop does not use.
    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def through_wire(message: Message) -> Message:
    """The message as the other side reads it: deflated to bytes and inflated again."""
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    back = inflate_object_from_contents(message.object_id, contents)
    back.metadata.__dict__["_message_id"] = message.metadata.message_id
    return back

"""Send and receive over Flower's grid, one message at a time, so that memory does not depend on the cohort's size.

Messages are pushed one by one; replies are pulled one by one in the order they were sent. A reply that arrives early
waits at the SuperLink, encoded (in a simulation the SuperLink is the same process).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from strategies.protocol import wire

FIRST_WAIT, LONGEST_WAIT = 0.02, 0.5  # seconds between two polls for a reply


@dataclass(frozen=True)
class Sent:
    """A message that was sent."""

    node_id: int
    message_id: str  # empty if the SuperLink did not take it
    bytes: int
    numbers: int = 0  # parameters among its content


@dataclass(frozen=True)
class Payload:
    """Records that several messages share: encoded and measured once."""

    records: RecordDict
    bytes: int
    numbers: int = 0

    @classmethod
    def of(cls, records: RecordDict, numbers: int = 0) -> "Payload":
        """Return `records` with their size, without the enclosing dictionary; `numbers` is how many parameters they
        contain."""
        return cls(records, wire.size(records) - wire.head(tuple(records)), numbers)


def send(grid: Grid, node_id: int, kind: str, group: str, shared: Payload, own: RecordDict | None = None) -> Sent:
    """Push one message with shared records and its own; its size counts all of them."""
    mine = Payload.of(own or RecordDict())
    content = RecordDict({**shared.records, **mine.records})
    message = Message(content, dst_node_id=node_id, message_type=kind, group_id=group)
    ids = [message_id for message_id in grid.push_messages([message]) if message_id]
    size = shared.bytes + mine.bytes + wire.head(tuple(content))
    return Sent(node_id, ids[0] if ids else "", size, shared.numbers)


def replies(grid: Grid, sent: list[Sent], deadline: float) -> Iterator[tuple[Sent, Message | None]]:
    """Yield the reply to each message in order; None if there is none by the deadline (time.monotonic)."""
    for item in sent:
        yield item, _wait(grid, item.message_id, deadline) if item.message_id else None


def arrived(grid: Grid, item: Sent) -> Message | None:
    """Return the reply to a message if it has arrived."""
    found = list(grid.pull_messages([item.message_id])) if item.message_id else []
    return found[0] if found else None


def _wait(grid: Grid, message_id: str, deadline: float) -> Message | None:
    """Poll until the reply has arrived; poll once more after the deadline, because it may have waited.

    A grid that has `wait` returns from it as soon as the reply is there.
    """
    pause, wait = FIRST_WAIT, getattr(grid, "wait", time.sleep)
    while True:
        late = time.monotonic() >= deadline
        for message in grid.pull_messages([message_id]):
            return message
        if late:
            return None
        wait(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 1.5, LONGEST_WAIT)

"""Nodes that connect during a run. They are asked at once, and their answers are taken when they arrive: a node that
does not answer delays nobody."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message

from strategies.rounds import messaging
from strategies.rounds.handshake.handshake import Greeting, Handshake, HandshakeResult

POLL = 0.2  # seconds between polls while there is nothing else to do


@dataclass
class _Guest:
    """A node in its handshake: what it was sent, and its deadline (time.monotonic)."""

    greeting: Greeting
    sent: list[messaging.Sent]
    deadline: float


@dataclass
class Newcomers:
    """The handshakes in progress, one per node."""

    handshake: Handshake
    guests: dict[int, _Guest] = field(default_factory=dict)  # by Flower's node id

    def ask(self, node_ids: Iterable[int]) -> None:
        """Start a handshake with the nodes that have none in progress."""
        for node_id in node_ids:
            if node_id not in self.guests:
                greeting = self.handshake.greet([node_id])
                self.guests[node_id] = _Guest(
                    greeting, next(greeting), time.monotonic() + self.handshake.context.timeout
                )

    def met(self, wait: bool) -> Iterator[HandshakeResult]:
        """Yield the results of handshakes that have finished; `wait`: wait until one has, or none is left."""
        while True:
            found = [handshake for node_id in list(self.guests) if (handshake := self._goes_on(node_id)) is not None]
            yield from found
            if found or not wait or not self.guests:
                return
            time.sleep(POLL)

    def _goes_on(self, node_id: int) -> HandshakeResult | None:
        """Continue with one node if it has answered or is too late; return the result if that ends its handshake."""
        guest = self.guests[node_id]
        while True:
            (item,) = guest.sent
            reply: Message | None = messaging.arrived(self.handshake.context.grid, item)
            if reply is None and item.message_id and time.monotonic() < guest.deadline:
                return None
            try:
                guest.sent = guest.greeting.send([(item, reply)])
                guest.deadline = time.monotonic() + self.handshake.context.timeout
            except StopIteration as end:
                del self.guests[node_id]
                handshake: HandshakeResult = end.value
                return handshake

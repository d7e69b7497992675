"""Nodes that connect while a run goes on. They are asked at once, and what they answer is taken when it is there: a
node that says nothing holds nobody up.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message

from strategies.rounds import messaging
from strategies.rounds.handshake.handshake import Greeting, Handshake, HandshakeResult

POLL = 0.2  # seconds between looks, where there is nothing else to do


@dataclass
class _Guest:
    """A node that is being met: what it was sent, and until when it may answer (time.monotonic)."""

    greeting: Greeting
    sent: list[messaging.Sent]
    deadline: float


@dataclass
class Newcomers:
    """Meets nodes, one conversation each."""

    handshake: Handshake
    guests: dict[int, _Guest] = field(default_factory=dict)  # by Flower's node id

    def ask(self, node_ids: Iterable[int]) -> None:
        """Begin to meet those that are not being met."""
        for node_id in node_ids:
            if node_id not in self.guests:
                greeting = self.handshake.greet([node_id])
                self.guests[node_id] = _Guest(
                    greeting, next(greeting), time.monotonic() + self.handshake.context.timeout
                )

    def met(self, wait: bool) -> Iterator[HandshakeResult]:
        """What came of the conversations that are over by now; `wait`: until one is, or none is left."""
        while True:
            found = [handshake for node_id in list(self.guests) if (handshake := self._goes_on(node_id)) is not None]
            yield from found
            if found or not wait or not self.guests:
                return
            time.sleep(POLL)

    def _goes_on(self, node_id: int) -> HandshakeResult | None:
        """Go on with one node while it has answered, or is too late; what came of it where that is the end."""
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

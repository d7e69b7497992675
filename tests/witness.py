"""A grid that writes down what really left each node, for an account that dp-accounting keeps by itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dp_accounting import DpEvent, GaussianDpEvent, PoissonSampledDpEvent, pld
from flwr.app import Message
from fragile import Fragile, Killed

CLIPS = 2  # that two updates of a node may be apart


@dataclass(frozen=True)
class Left:
    """A message of training that left a node."""

    node: int
    round: int
    noise: float  # in clips, as it was ordered
    rows: int
    steps: int

    def update(self) -> tuple[DpEvent, int]:
        """What a noised update costs all data of the node."""
        return GaussianDpEvent(self.noise / CLIPS), 1

    def descent(self, batch: int) -> tuple[DpEvent, int]:
        """What private steps cost a row of it."""
        rate, noise = batch / self.rows, GaussianDpEvent(self.noise)
        return (PoissonSampledDpEvent(rate, noise) if rate < 1 else noise), self.steps


class Witness(Fragile):
    """`looks` and `trained` end the server, as in `Fragile`; `given` is the noise where the options say it."""

    def __init__(self, journal: list[Left], given: float = 0.0, looks: int = -1, trained: int = -1) -> None:
        super().__init__(looks, trained)
        self.journal, self.given = journal, given
        self._message: Any = None

    def delivered(self, message: Message) -> Message | None:
        self._message = message
        return super().delivered(message)

    def _spoil(self, partition: int, kind: str, reply: Message) -> Message:
        if kind == "train":
            assignment, said = self._message.content["assignment"], reply.content["metrics"]
            noise = self.given or assignment["noise"]
            number, rows, steps = assignment["server-round"], said["num-examples"], said["steps"]
            self.journal.append(Left(partition, number, noise, rows, steps))
        return super()._spoil(partition, kind, reply)


def epsilon(events: Iterable[tuple[DpEvent, int]], delta: float) -> float:
    """By dp-accounting alone."""
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    for event, times in events:
        accountant.compose(event, times)
    return float(accountant.get_epsilon(delta))


def largest(journal: list[Left], delta: float, batch: int = 0) -> float:
    """Of the node that has spent most; `batch` 0: of updates, else of rows of DP-SGD."""
    events = {
        one.node: [o.descent(batch) if batch else o.update() for o in journal if o.node == one.node] for one in journal
    }
    return max((epsilon(own, delta) for own in events.values()), default=0.0)


__all__ = ["Killed", "Left", "Witness", "epsilon", "largest"]

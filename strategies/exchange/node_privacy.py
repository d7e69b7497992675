"""A wrapper by which nodes protect their own rows: each adds noise before anything leaves, and pays for it."""

from dataclasses import dataclass

from strategies.algebra.accountant import Release
from strategies.exchange.privacy import Payment
from strategies.exchange.types import Assignment, Refused
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.schema import option


@dataclass(frozen=True)
class NodePrivacy(Wrapper):
    """`noise` in clips; 0: what lets a node take part in all rounds within `epsilon` (0: no budget). A subclass has
    `release`, and a `mechanism` that counts on the server."""

    epsilon: float = option(8.0, low=0.0, doc="budget of every node, by its own count; 0: none")
    delta: float = option(1e-5, low=1e-12, high=0.5, doc="at which epsilon holds")
    noise: float = option(
        0.0,
        low=0.0,
        doc="standard deviation of the noise, in clips; 0: the least that lets a node take part in all rounds",
    )
    clip: float = option(
        1.0,
        low=0.0,
        doc="largest norm before noise, of an update or of a row's gradient; 0: any, which is for runs without noise",
    )

    @property
    def silent(self) -> bool:
        return bool(self.noise or self.epsilon)

    def release(self, config: TaskConfig, rows: int, noise: float) -> tuple[Release, int]:
        """Return what a message of a node with so many rows releases, with `noise` in clips, and how often."""
        raise NotImplementedError

    def noise_of(self, assignment: Assignment) -> float:
        """Return the noise that a node adds, in clips, as the options or its ticket say.

        Raises Refused for a ticket without.
        """
        noise = self.noise or assignment.noise
        if self.silent and not noise:
            raise Refused(f"the ticket says no noise, which {self.name}.epsilon needs")
        return noise if self.silent else 0.0

    def payment(self, assignment: Assignment, config: TaskConfig, rows: int) -> Payment | None:
        if not self.clip or not self.silent:
            return None
        released = self.release(config, rows, self.noise_of(assignment))
        return Payment(self.name, *released, self.epsilon, self.delta)

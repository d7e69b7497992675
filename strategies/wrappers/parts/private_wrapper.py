"""The base class of privacy wrappers: a clip, noise in clips, and a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from strategies.algebra.accountant import Release
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.privacy import Payment, scored_by_nodes
from strategies.exchange.types import Assignment, Refused
from strategies.exchange.wrapper import NODE, Wrapper
from task.config import TaskConfig
from task.schema import option


@dataclass(frozen=True)
class PrivateWrapper(Wrapper):
    """Options of differential privacy. `noise` is in clips; 0: the least noise that lets all rounds fit into `epsilon`
    (0: no budget). A subclass says who adds the noise (`privacy`) and has a `mechanism` on the server; if nodes add it,
    it also has `release`."""

    epsilon: float = option(8.0, low=0.0, doc="privacy budget, of the run or of every node by its own count; 0: none")
    delta: float = option(
        1e-5, low=1e-12, high=0.5, doc="at which epsilon holds; well below 1 / nodes, or 1 / rows of a node"
    )
    noise: float = option(
        0.0,
        low=0.0,
        doc="standard deviation of the noise, in clips; 0: the least that the budget allows in all rounds",
    )
    clip: float = option(
        1.0,
        low=0.0,
        doc="largest norm before noise, of an update or of a row's gradient; 0: any, which is for runs without noise",
    )

    @property
    def private(self) -> bool:
        """Return whether there is noise, rather than the clip alone."""
        return bool(self.noise or self.epsilon)

    @property
    def hides_metrics(self) -> bool:
        return self.privacy == NODE and self.private

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence[Wrapper]
    ) -> list[str]:
        if not self.private:
            return []
        found = scored_by_nodes(config, self.name)
        if not self.clip:
            found.append(f"{self.name}.clip = 0 bounds nothing, and noise needs a bound: set it above 0")
        return found

    def release(self, config: TaskConfig, rows: int, noise: float) -> tuple[Release, int]:
        """Return what a message of a node with so many rows releases, with `noise` in clips, and how often."""
        raise NotImplementedError

    def noise_of(self, assignment: Assignment) -> float:
        """Return the noise that a node adds, in clips, from the options or its assignment.

        Raises Refused for an assignment without noise.
        """
        noise = self.noise or assignment.noise
        if self.private and not noise:
            raise Refused(f"the assignment has no noise, which {self.name}.epsilon needs")
        return noise if self.private else 0.0

    def payment(self, assignment: Assignment, config: TaskConfig, rows: int) -> Payment | None:
        if self.privacy != NODE or not self.clip or not self.private:
            return None
        released = self.release(config, rows, self.noise_of(assignment))
        return Payment(self.name, *released, self.epsilon, self.delta)

"""Who does harm: what each update of a round does to the loss on rows of the server's own, and what that comes to.

After Xie, Koyejo, Gupta, "Zeno: Distributed Stochastic Gradient Descent with Suspicion-based Fault-tolerance", arXiv
1805.10032, who score each update by the loss that it alone leads to. That would condemn honest nodes of one class:
their updates are good only together with those of others. So two questions are put to each of n updates. With L the
loss, w the state before, w' the new one, w'(-i) the one where the update of i had learned nothing, and w(i) the one
where all others had, and i a quarter of what it did:

    harm_i = n min( L(w') - L(w'(-i)) - d,  4 (L(w(i)) - L(w)) ),    d the median over nodes, or zero if that is less

Where all updates are alike and the loss is straight, it is -g for everybody, where g is what the round gained; for a
node that sends the opposite of what it learned it is +g. Harm is added up over a node's rounds, and held against what
these could have gained: a node is harmful where that is about as much as honest nodes do good.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

SHARE = 0.8  # of the good that was to be had, over all rounds that a node was looked at
AT_ONCE = 1.6  # times that good, where it was one round
STEEPEST = 4.0  # times the good of a round: more harm is not counted, as in rounds that could gain next to nothing
QUARTER = 0.25
RISE = 0.1  # of all that the run has learned: a loss that rises by as much is looked into


@dataclass
class Tally:
    """Of one node, over rounds, in nats; plain numbers, for a checkpoint."""

    harm: float = 0.0
    good: float = 0.0
    rounds: int = 0

    def add(self, harm: float, good: float) -> None:
        """Count a round in which it did so much harm, and so much good was to be had."""
        self.harm += max(-STEEPEST * good, min(STEEPEST * good, harm))
        self.good += good
        self.rounds += 1

    @property
    def share(self) -> float:
        """How much harm it did to every good that was to be had; negative where it did good."""
        return self.harm / self.good if self.good else 0.0

    @property
    def harmful(self) -> bool:
        """Whether it has done more harm than chance explains."""
        return self.share >= max(SHARE, AT_ONCE / max(1, self.rounds))


@dataclass(frozen=True)
class Losses:
    """Of one round, on the same rows: of the state before and the new one; without what each node learned; and, for who
    is suspected by that, with a quarter of that alone."""

    before: float
    after: float
    without: Mapping[str, float]
    alone: Mapping[str, float]

    @property
    def good(self) -> float:
        """What was to be had: by the best of these states."""
        return max(0.0, self.before - min(self.after, *self.without.values()))

    def harm(self, cohort: int) -> dict[str, float]:
        """By node, of a cohort of so many."""
        gained = relieved(self.after, self.without)
        return {
            node: cohort * min(gain, (self.alone[node] - self.before) / QUARTER if node in self.alone else gain)
            for node, gain in gained.items()
        }


def relieved(after: float, without: Mapping[str, float]) -> dict[str, float]:
    """Return how much the loss falls without what each node learned, beyond what it does for most."""
    gains = {node: after - loss for node, loss in without.items()}
    usual = max(0.0, median_low(gains.values()))
    return {node: gain - usual for node, gain in gains.items()}

"""The harm that nodes do: the effect of each update on the loss on the server's own rows, and its sum over rounds.

After Xie, Koyejo, Gupta, "Zeno: Distributed Stochastic Gradient Descent with Suspicion-based Fault-tolerance", arXiv
1805.10032, who score each update by the loss that it leads to by itself. That would condemn honest nodes of one class:
their updates are good only together with other nodes' updates. So each of n updates is measured in two ways. With L the
loss, w the state before, w' the new one, w'(-i) the new one if the update of i were zero, and w(i) the new one if all
others were zero, and i a quarter of its update:

    harm_i = n min( L(w') - L(w'(-i)) - d,  4 (L(w(i)) - L(w)) ),    d the median over nodes, or zero if that is less

If all updates are alike and the loss is linear, it is -g for every node, where g is the gain of the round; for a node
that sends the opposite of what it learned it is +g. Harm is added up over a node's rounds and compared with what these
could have gained: a node is harmful if its harm is about as large as the good of honest nodes.

Less harm is enough if the labels show that the update is reversed. Training lowers the loss of the labels that a node
has by more than it raises that of any other; the opposite of an update raises the loss of one label most. With e_c the
change that an update makes to the loss of label c, its reversal is

    (max e + min e) / (max e - min e),     where max e >= 0 >= min e:

-1 if the update only helps and 1 if it only harms, whatever labels the node has. It is measured in both ways above, and
the lower one counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import median_low

SHARE = 0.8  # of the possible good, over all rounds in which a node was examined
AT_ONCE = 1.6  # times that good, if it was one round
LESS = 0.3  # of the possible good, for a node whose updates are reversed
REVERSED = 0.22  # the reversal of one round; the mean over n rounds varies less, by the root of n
STEADY = 5  # rounds; over more of them the mean is not expected to vary less
STEEPEST = 4.0  # times the good of a round: harm beyond it is not counted, for rounds that could gain almost nothing
QUARTER = 0.25
RISE = 0.1  # of all that the run has learned: a larger rise of the loss is examined


@dataclass
class Tally:
    """The harm of one node over rounds, in nats, and its reversal; plain numbers, for a checkpoint."""

    harm: float = 0.0
    good: float = 0.0
    rounds: int = 0
    reversal: float = 0.0  # the sum over rounds

    def add(self, harm: float, good: float, reversal: float = 0.0) -> None:
        """Add a round with this harm, this possible good, and this reversal (0 if it was not measured)."""
        self.harm += max(-STEEPEST * good, min(STEEPEST * good, harm))
        self.good += good
        self.rounds += 1
        self.reversal += reversal

    @property
    def share(self) -> float:
        """Return the harm per possible good; negative if the node did good."""
        return self.harm / self.good if self.good else 0.0

    @property
    def reversed(self) -> bool:
        """Return whether the labels show that the node's updates are reversed."""
        rounds = max(1, self.rounds)
        return self.reversal / rounds >= REVERSED / sqrt(min(rounds, STEADY))

    @property
    def harmful(self) -> bool:
        """Return whether the node has done more harm than chance explains."""
        return self.share >= (LESS if self.reversed else max(SHARE, AT_ONCE / max(1, self.rounds)))


@dataclass(frozen=True)
class Losses:
    """The losses of one round, on the same rows: of the state before and the new one; without what each node learned;
    and, for nodes suspected by that, with a quarter of their update alone, and the reversal of the update."""

    before: float
    after: float
    without: Mapping[str, float]
    alone: Mapping[str, float]
    reversal: Mapping[str, float] = field(default_factory=dict)

    @property
    def good(self) -> float:
        """Return the possible gain: the loss of the best of these states."""
        return max(0.0, self.before - min(self.after, *self.without.values()))

    def harm(self, cohort: int) -> dict[str, float]:
        """Return the harm by node, for a cohort of this size."""
        gained = relieved(self.after, self.without)
        return {
            node: cohort * min(gain, (self.alone[node] - self.before) / QUARTER if node in self.alone else gain)
            for node, gain in gained.items()
        }


def relieved(after: float, without: Mapping[str, float]) -> dict[str, float]:
    """Return how much the loss falls without what each node learned, beyond the median."""
    gains = {node: after - loss for node, loss in without.items()}
    usual = max(0.0, median_low(gains.values()))
    return {node: gain - usual for node, gain in gains.items()}


def changes(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return how much each label's loss rises."""
    return [new - old for old, new in zip(before, after, strict=True)]


def reversal(*effects: Sequence[float]) -> float:
    """Return the reversal of an update, from -1 to 1: the lowest over several measurements of its effects, the changes
    of the loss by label in nats. It is 0 where nothing changes, and where a single label says nothing about others."""
    return min(map(_reversal, effects))


def _reversal(effects: Sequence[float]) -> float:
    most, least = max(0.0, *effects), min(0.0, *effects)
    return (most + least) / (most - least) if len(effects) > 1 and most > least else 0.0

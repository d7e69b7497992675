"""Refuse implausible updates: none may be much longer than those of other nodes and of the rounds before.

The strategy defines the length of an update (`Algorithm.lengths`): the numbers that it moves the model by, whatever its
wrappers, over the root of their count, so that ranks may differ. An update within `factor` times the median of the
run's newest updates is believed at once. Any other update, and every update before there are enough, waits in a file
until the cohort is complete. It is refused if it is longer than `factor` times the median of the cohort (for a small
cohort, together with the newest of the run). So less than half of the nodes cannot decide what is plausible, and honest
updates may grow together.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

ENOUGH = 9  # lengths that a median needs
REMEMBERED = 32  # lengths per kind, from one round to the next

Lengths = Mapping[str, float]  # by kind, and tensors after a slash; only equal names are compared


@dataclass
class Plausible:
    """The judge of plausible updates in one round; every update is plausible if `factor` is 0. `before` are the newest
    lengths of the run by name, and `close` adds this round's."""

    factor: float
    before: dict[str, list[float]]
    seen: list[Lengths] = field(default_factory=list)  # of this round's good replies
    kept: list[Lengths] = field(default_factory=list)  # of this round's updates that were believed

    def sure(self, lengths: Lengths) -> bool:
        """Return whether an update is believed before the others arrive; either way it belongs to the cohort."""
        self.seen.append(lengths)
        return not self.factor or all(
            len(before := self.before.get(name, [])) >= ENOUGH and length <= self.factor * statistics.median_low(before)
            for name, length in lengths.items()
        )

    def refusal(self, lengths: Lengths) -> str:
        """Return why an update is not believed, once the lengths of the whole cohort are known; empty if it is."""
        for name, length in lengths.items():
            cohort = [own[name] for own in self.seen if name in own]
            newest = self.before.get(name, [])[::-1][: max(0, ENOUGH - len(cohort))]
            middle = statistics.median_low(cohort + newest)
            if middle and length > self.factor * middle:
                what = name.partition("/")[0]
                limit = f"outlier-factor = {self.factor:g} times the median, {middle:.3g}"
                return f"its update has a {what} of {length:.3g} by the root of its numbers, more than {limit}"
        return ""

    def believe(self, lengths: Lengths) -> None:
        """Add a believed update's lengths."""
        if self.factor:
            self.kept.append(lengths)

    def close(self) -> None:
        """End the round."""
        for lengths in self.kept:
            for name, length in lengths.items():
                self.before[name] = [*self.before.get(name, []), length][-REMEMBERED:]

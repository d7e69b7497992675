"""Which updates are plausible in a run: none is much longer than those of other nodes and of the rounds before.

How long an update is its strategy says (`Algorithm.lengths`): in the numbers that it moves the model by, whatever
wrappers it came through; by the root of how many numbers it has, so that ranks may differ. One that is within `factor`
times the median of the run's newest updates is believed as it comes. Any other, and every one before there are enough,
waits in a file until the cohort is complete, and is refused where it is longer than `factor` times the median of the
cohort (of a small cohort together with the newest of the run). So less than half of the nodes cannot decide what is
plausible, and honest updates may grow together.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

ENOUGH = 9  # lengths that have a median to go by
REMEMBERED = 32  # lengths of a kind, from one round to the next

Lengths = Mapping[str, float]  # by what is measured, and of what after a slash; only those of one name are compared


@dataclass
class Plausible:
    """What is plausible in one round; all is where `factor` is 0. `before` are the newest lengths of the run by name,
    and `close` adds those of this round."""

    factor: float
    before: dict[str, list[float]]
    seen: list[Lengths] = field(default_factory=list)  # of this round, of good replies
    kept: list[Lengths] = field(default_factory=list)  # those of them that were believed

    def sure(self, lengths: Lengths) -> bool:
        """Return whether an update is believed before the others are there; either way it is one of the cohort."""
        self.seen.append(lengths)
        return not self.factor or all(
            len(before := self.before.get(name, [])) >= ENOUGH and length <= self.factor * statistics.median_low(before)
            for name, length in lengths.items()
        )

    def refusal(self, lengths: Lengths) -> str:
        """Return why an update is not believed, "" where it is, once those of the whole cohort are known."""
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
        """Go by an update from now on."""
        if self.factor:
            self.kept.append(lengths)

    def close(self) -> None:
        """The round is over."""
        for lengths in self.kept:
            for name, length in lengths.items():
                self.before[name] = [*self.before.get(name, []), length][-REMEMBERED:]

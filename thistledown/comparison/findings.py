"""What a comparison finds, as tables of texts: the sides, and what each node gains by joining."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server_app.results.amounts import human, lasted
from server_app.results.measure import Measure, written
from thistledown.comparison.curves import AXES, Side, order, paired
from thistledown.comparison.significance import AHEAD, BEHIND, EQUAL, chance, verdict

FORMATS = {"round": lambda value: f"{value:.1f} rounds", "bytes": human, "seconds": lasted}
Table = list[list[str]]  # the head first


@dataclass(frozen=True)
class Findings:
    """`sides` are the entries, the first of which is the reference. `alone` are the nodes by name, by themselves, and
    `central` is all rows together; empty without baselines. `target` is a quality to reach, if there is one."""

    sides: Sequence[Side]
    measure: Measure
    target: float | None
    alone: Mapping[str, Side]
    central: Side | None = None

    @property
    def title(self) -> str:
        """Return the display name of the metric."""
        return self.measure.titles[self.measure.metric]

    def table(self) -> Table:
        """Return a row for each side, the best first: quality, difference to the reference, costs, and to target."""
        to = ["to target"] if self.target is not None else []
        head = ["", self.title, f"less {self.sides[0].name}", "p", "verdict", "bytes", "time", *to, "runs"]
        return [head, *(self._row(side) for side in order(self.sides, self.measure)), *self._baselines(len(to))]

    def _row(self, side: Side) -> list[str]:
        reached = [self._to_target(side)] if self.target is not None else []
        costs = [_total(side, "bytes"), _total(side, "seconds")]
        against = ["", "", ""] if side is self.sides[0] else self._against(side.qualities)
        return [side.name, spread(side.qualities), *against, *costs, *reached, _runs(side)]

    def _against(self, qualities: Mapping[int, float]) -> list[str]:
        """Return the difference to the reference, its p value and what it says."""
        differences = paired(qualities, self.sides[0].qualities)
        if not differences:
            return ["", "", ""]
        p = chance(differences)
        said = verdict(differences, self.measure.lowest)
        return [f"{statistics.mean(differences):+.3f}", "" if math.isnan(p) else f"{p:.3f}", said]

    def _to_target(self, side: Side) -> str:
        """Return the mean rounds, bytes and time to the target over seeds, or in how many runs it was reached."""
        assert self.target is not None
        found = [curve.reached(self.target, self.measure) for curve in side.good]
        there = [one for one in found if one is not None]
        if not there or len(there) < len(side.curves):
            return f"reached in {len(there)} of {len(side.curves)} runs"
        return ", ".join(FORMATS[axis](statistics.mean(one[axis] for one in there)) for axis in AXES)

    def _baselines(self, more: int) -> Iterator[list[str]]:
        """Yield the rows of what there is without the federation."""
        if self.central is not None:
            costs = ["", _total(self.central, "seconds"), *[""] * more, _runs(self.central)]
            yield [
                "*all rows in one place*",
                spread(self.central.qualities),
                *self._against(self.central.qualities),
                *costs,
            ]
        if self.alone:
            mean = self.alone_on_average
            yield ["*a node alone, on average*", spread(mean), *self._against(mean), *[""] * (2 + more), ""]
        bases = {curve.seed: curve.base for curve in self.sides[0].good if curve.base is not None}
        if bases:
            yield ["*before training*", spread(bases), *[""] * (5 + more), ""]

    @property
    def alone_on_average(self) -> dict[int, float]:
        """Return the mean quality of all nodes alone, by seed."""
        seeds = {seed for side in self.alone.values() for seed in side.qualities}
        own = {seed: [side.qualities[seed] for side in self.alone.values() if seed in side.qualities] for seed in seeds}
        return {seed: statistics.mean(values) for seed, values in sorted(own.items())}

    def joining(self) -> Table:
        """Return a row for each node: its rows, what it reaches alone, and what each side gains it, mean over seeds."""
        head = ["node", "rows", "alone", *(f"{side.name}: gain" for side in self.sides), "joining pays"]
        rows = [[name, self._rows(name), spread(own.qualities), *self._gains(own)] for name, own in self.alone.items()]
        return [head, *rows] if rows else []

    def _rows(self, node: str) -> str:
        counts = [sum(nodes[node]) for nodes in self._splits if node in nodes]
        return f"{statistics.mean(counts):,.0f}" if counts else ""

    @property
    def _splits(self) -> list[Mapping[str, Any]]:
        return [curve.split["nodes"] for curve in self.sides[0].curves if curve.split]

    def _gains(self, own: Side) -> list[str]:
        """Return what each side gains on a node alone, and in how many pairs of runs that is more than nothing."""
        gains = [paired(side.qualities, own.qualities) for side in self.sides]
        every = [gain for of_side in gains for gain in of_side]
        better = sum((gain < 0) if self.measure.lowest else (gain > 0) for gain in every)
        shown = [f"{statistics.mean(own):+.3f}" if own else "" for own in gains]
        return [*shown, f"{better} of {len(every)}"]

    def headline(self) -> str:
        """Return in a sentence or two who is ahead, and for how many nodes joining pays."""
        ranked = [side for side in order(self.sides, self.measure) if side.mean is not None]
        if not ranked:
            return "No run completed."
        best = ranked[0]
        said = f"{best.name} has the best {self.title}, {spread(best.qualities)}"
        if len(ranked) > 1:
            rivals = [
                (side, verdict(paired(best.qualities, side.qualities), self.measure.lowest)) for side in ranked[1:]
            ]
            equal = [side.name for side, found in rivals if found == EQUAL]
            behind = [side.name for side, found in rivals if found == AHEAD]
            said += f"; ahead of {_listed(behind)}" if behind else ""
            said += f"; not separable from {_listed(equal)}" if equal else ""
            said += "; one seed separates nothing" if not (behind or equal) else ""
        return f"{said}.{self._pays(best)}"

    def _pays(self, best: Side) -> str:
        if not self.alone:
            return ""
        found = [verdict(paired(best.qualities, own.qualities), self.measure.lowest) for own in self.alone.values()]
        means = [
            statistics.mean(gains) for own in self.alone.values() if (gains := paired(best.qualities, own.qualities))
        ]
        better = sum((mean < 0) if self.measure.lowest else (mean > 0) for mean in means)
        clear, worse = found.count(AHEAD), found.count(BEHIND)
        said = f" On average over seeds, joining it pays for {better} of {len(means)} nodes, and clearly for {clear}"
        return f"{said}; {worse} are clearly better off alone." if worse else f"{said}."


def spread(qualities: Mapping[int, float]) -> str:
    """Return the mean and the standard deviation over seeds."""
    values = list(qualities.values())
    if not values:
        return "failed"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{written(statistics.mean(values))}{deviation}"


def markdown(table: Table) -> list[str]:
    """Return a table as lines of Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _total(side: Side, axis: str) -> str:
    total = side.total(axis)
    return "" if total is None else FORMATS[axis](total)


def _runs(side: Side) -> str:
    failed = len(side.curves) - len(side.good)
    return f"{len(side.good)}, {failed} failed" if failed else str(len(side.good))


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

"""Examine the updates of a round one by one, if the server has rows to judge them by, and combine the round without
those that do harm.

Every round the server scores the new state on a few rows. It examines single updates in the first rounds of a run, in
randomly chosen later rounds that nobody can predict, when the loss has clearly risen, and as long as it suspects a
node. It leaves out the update of a node that has done harm over several rounds (`influence`) and does harm in this one;
and, if the loss has risen, the updates responsible for that. It then combines the round again from the other updates,
and keeps the result only if it is better. No node is left out for good: an honest node whose rows are all of one class
may do harm in a round that has too much of it, and be missed in the next.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from strategies.exchange.federation import Probe
from strategies.exchange.types import State, Update
from strategies.rounds.defence.influence import QUARTER, RISE, Losses, Tally, changes, relieved, reversal
from strategies.rounds.defence.spool import Spool
from strategies.rounds.run import Run
from task.seeds import derive

LOG = logging.getLogger("flwr")
EARLY = 3  # first rounds of a run, all of which are examined
CHANCE = 0.25  # probability that a later round is examined
FEW = 3  # the least number of updates of which one can be left out
MOST = 16  # updates of a round that are examined, drawn anew every time
ROOM = 4 * 2**30  # bytes of updates that are stored; a larger round is not examined
HARM = "its update does harm"  # how the reason of an update that is left out begins
Combine = Callable[[Iterable[Update]], State]
Trial = tuple[float, State, list[str]]  # the loss and the state without the updates of some


@dataclass(frozen=True)
class Verdict:
    """The resulting state, and the nodes whose updates were left out, with the reason."""

    state: State
    left_out: dict[str, str] = field(default_factory=dict)


def room(run: Run) -> int:
    """Return how many bytes of updates are stored for examination; 0 if no round is examined. Under noise on the mean,
    whether an update counts must not depend on the others."""
    return 0 if run.context.federation.probe is None or run.mechanism.hides_metrics else ROOM


def examined(run: Run, number: int, state: State, new: State, updates: Spool, combine: Combine) -> Verdict:
    """Return the outcome of a round that leads from `state` to `new`, by `combine` of all `updates`."""
    if updates.full and room(run) and number == max(1, run.first):  # nothing is trained in round 0
        LOG.warning("round %d: single updates are not examined: they are more than %d bytes", number, ROOM)
    if run.context.federation.probe is None or updates.full or len(updates) < FEW:
        return Verdict(new)
    if (probe := run.context.federation.probe(state)) is None:
        return Verdict(new)
    before, after = probe(state), probe(new)
    risen = after - before >= RISE * run.context.run_state.learned(before, after)
    suspected = any(tally.harmful for tally in run.context.run_state.tallies.values())
    source = _source(run, number, before, after)
    if not (number <= EARLY or risen or suspected or source.random() < CHANCE):
        return Verdict(new)
    verdict = _Examination(run, number, updates, combine, probe, source, state, new).verdict(before, after)
    if verdict.state is new:
        probe(new)  # the journal continues from here, not from the state probed last
    return verdict


def _source(run: Run, number: int, before: float, after: float) -> random.Random:
    """Return the seed of random choices: the same when a run is repeated or resumed, and unpredictable without the rows
    that the two losses were measured on."""
    return random.Random(derive(run.context.federation.seed, "examination", number, before.hex(), after.hex()))


@dataclass(frozen=True)
class _Examination:
    run: Run
    number: int
    updates: Spool
    combine: Combine
    probe: Probe
    source: random.Random
    state: State  # before
    new: State

    def verdict(self, before: float, after: float) -> Verdict:
        """Return whether the new state is kept, given the losses of the state before and of the new one."""
        losses, cohort, new = self._losses(before, after), len(self.updates), self.new
        harm, tallies = losses.harm(cohort), self.run.context.run_state.tallies
        for node, own in harm.items():
            tallies.setdefault(node, Tally()).add(own, losses.good, losses.reversal.get(node, 0.0))
        harmful = {node for node, own in harm.items() if own > 0 and tallies[node].harmful}
        learned = self.run.context.run_state.learned(before, min(after, *losses.without.values()))
        risen = after - before if after - before >= RISE * learned > 0 else 0.0
        behind = {node for node, gain in relieved(after, losses.without).items() if cohort * gain >= risen > 0}
        by_harm = sorted(harmful | behind, key=lambda node: (node not in harmful, -harm[node]))
        best: Trial = (after, new, [])
        for count in range(1, min(len(by_harm), (cohort - 1) // 2) + 1):
            best = min(best, self._without(by_harm[:count]), key=lambda trial: trial[0])
            if count >= len(harmful) and best[0] <= before:
                break  # enough are left out
        loss, others, left_out = best
        if loss >= after - risen / 2:
            return Verdict(new)
        said = f"{HARM}: the loss on the server's rows is {after:.4g}, without {_and(left_out)} {loss:.4g}"
        return Verdict(others, {node: said + self._record(node) for node in left_out})

    def _record(self, node: str) -> str:
        """Return what a harmful node has done before."""
        tally = self.run.context.run_state.tallies[node]
        if not tally.harmful:
            return ""
        rounds = "1 round" if tally.rounds == 1 else f"{tally.rounds} rounds"
        said = f"; in {rounds} it undid {tally.share:.2f} of what could be gained"
        return said + ", and its effect on the labels is that of a reversed update" if tally.reversed else said

    def _without(self, nodes: list[str]) -> Trial:
        """Return the loss and the state without the updates of these nodes."""
        others = self.combine(update for update in self.updates if update.node not in nodes)
        return self.probe(others), others, nodes

    def _losses(self, before: float, after: float) -> Losses:
        nodes = [update.node for update in self.updates.heads]
        chosen = nodes if len(nodes) <= MOST else self.source.sample(nodes, MOST)
        without = {node: self.probe(self._led_to({node: 0.0}, others=1.0)) for node in chosen}
        suspected = [node for node, gain in relieved(after, without).items() if gain > 0]
        if not suspected:
            return Losses(before, after, without, {})
        labels_before, labels_after = self.probe.by_label(self.state), self.probe.by_label(self.new)
        alone, reversals = {}, {}
        for node in suspected:
            own = self._led_to({node: QUARTER}, others=0.0)
            alone[node] = self.probe(own)
            done_alone = changes(labels_before, self.probe.by_label(own))
            others = self._led_to({node: 0.0}, others=1.0)
            reversals[node] = reversal(changes(self.probe.by_label(others), labels_after), done_alone)
        return Losses(before, after, without, alone, reversals)

    def _led_to(self, own: dict[str, float], others: float) -> State:
        """Return the state that these shares of the nodes' updates lead to."""
        return self.combine(self._shortened(own, others))

    def _shortened(self, own: dict[str, float], others: float) -> Iterator[Update]:
        for update in self.updates:
            share = own.get(update.node, others)
            if share != 1.0:
                update = replace(update, delta=self.run.context.strategy.shortened(update.delta, share))
            yield update


def _and(nodes: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(nodes[:-1]), nodes[-1]]))

"""One round of training: draw a cohort, send, check replies, combine, apply."""

import hashlib
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from flwr.app import Message

from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import Tensors
from strategies.exchange import cohort, compatibility, head_rounds
from strategies.exchange.callback import NodeReport, RoundReport
from strategies.exchange.server_optimizer import stepped
from strategies.exchange.types import Assignment, Profile, Refused, State, Update
from strategies.protocol import wire
from strategies.rounds import messaging, validation
from strategies.rounds.aggregation_error import ErrorMeasurement
from strategies.rounds.defence import examination, outliers, row_limits
from strategies.rounds.defence.pulls import Pulls
from strategies.rounds.defence.spool import Spool
from strategies.rounds.draw import draw
from strategies.rounds.means import means
from strategies.rounds.run import Run

LOG = logging.getLogger("flwr")


def train(run: Run, number: int, state: State) -> tuple[State, RoundReport]:
    """Return the new state and the report of the round. The state stays the same if too few replies are good. Raises
    RunFailed."""
    LOG.info("[ROUND %d/%d]", number, run.context.rounds)
    report = run.report(number)
    run.registry.call(report)
    if run.context.config.tuning.moves_base:
        run.registry.leave_out_smaller(state.rank)
    report.resting = run.registry.resting(number)
    state = head_rounds.begun(state, run.context.config, number)
    assignments = run.registry.assignments(number, run.context.rounds, state)
    lonely = Assignment(number, run.context.rounds, 0, state.rank)  # without nodes, a round may still be noise alone
    widest = max(assignments.values(), key=lambda assignment: assignment.rank, default=lonely)
    rank = widest.rank
    state = run.context.strategy.begin(state, number, rank)
    minimum, there = run.context.federation.min_train_nodes, len(run.registry.present)
    if there < minimum and not (run.mechanism.steadfast and run.mechanism.poisson):
        report.failed = f"{there} nodes are connected, min-train-nodes is {minimum}"
        return state, report
    chosen = draw(run, number)
    if not chosen and not run.mechanism.poisson:
        report.failed = "no connected node may train within its privacy budget"
        return state, report
    for profile in chosen:
        assignments[profile.name] = replace(
            assignments[profile.name], noise=run.mechanism.ordered(profile.name), nodes=there
        )
    rows = run.rows({profile.name: profile.num_examples for profile in run.registry.present})
    turn = _Turn(run, state, assignments, widest, report, rows, _plausible(run))
    new = turn.combined(turn.updates(chosen))
    if not report.failed and run.context.strategy.server_optimizer is None:  # its step is not an error
        report.aggregation_error = turn.error.read(truncated(new.tensors, rank), new.journal[len(state.journal) :])
    return new, report


def _plausible(run: Run) -> outliers.Plausible:
    """Return the judge of implausible updates.

    Under noise on the mean no update is refused for its length: updates are clipped, and whether one counts must not
    depend on other nodes' updates, because the privacy account assumes so.
    """
    factor = 0.0 if run.mechanism.hides_metrics else run.context.federation.outlier_factor
    return outliers.Plausible(factor, run.context.run_state.lengths)


@dataclass
class _Turn:
    """A round in progress: the state that nodes are sent, their assignments, and what is known of the replies."""

    run: Run
    state: State
    assignments: dict[str, Assignment]
    widest: Assignment
    report: RoundReport
    rows: dict[str, int]  # the most that each node counts for
    judge: outliers.Plausible
    pulls: Pulls = field(default_factory=Pulls)
    error: ErrorMeasurement = field(default_factory=ErrorMeasurement)

    def updates(self, chosen: list[Profile]) -> Iterator[Update]:
        """Yield good updates in cohort order as their replies arrive; the others are logged with node and reason.

        Nothing is sent before the first update is asked for.
        """
        run, report = self.run, self.report
        pairs = [(profile, self.assignments[profile.name]) for profile in chosen]
        announced = run.mechanism.announced(len(pairs))
        sent = run.dispatch.send("train", report.number, self.state, pairs, report, announced)
        arrivals = messaging.replies(run.context.grid, sent, time.monotonic() + run.context.timeout)
        doubtful: list[tuple[Profile, NodeReport, outliers.Lengths]] = []
        with Spool() as waiting:
            for profile, line, (_, reply) in zip(chosen, report.nodes, arrivals, strict=True):
                try:
                    update = self._validated(profile, line, reply)
                except Refused as reason:
                    self._dropped(profile, line, reason)
                    continue
                lengths = self._lengths(update) if self.judge.factor else {}
                if self.judge.sure(lengths):
                    yield self._believed(profile, line, update, lengths)
                else:
                    waiting.add(update)
                    doubtful.append((profile, line, lengths))
            for (profile, line, lengths), update in zip(doubtful, waiting, strict=True):
                if strange := self.judge.refusal(lengths):
                    self._dropped(profile, line, Refused(strange))
                else:
                    yield self._believed(profile, line, update, lengths)
        self.judge.close()

    def _lengths(self, update: Update) -> outliers.Lengths:
        """Return the lengths of an update divided by the root of its size, to be compared with updates of the same
        tensors."""
        root = math.sqrt(max(1, sum(delta.numel() for delta in update.delta.values())))
        moved = hashlib.blake2b("\n".join(sorted(update.delta)).encode(), digest_size=4).hexdigest()
        lengths = self.run.context.strategy.lengths(self.state, update)
        return {f"{name}/{moved}": length / root for name, length in lengths.items()}

    def _dropped(self, profile: Profile, line: NodeReport, reason: Refused) -> None:
        line.refused = str(reason)
        LOG.warning("round %d: dropped the reply of node %s: %s", self.report.number, profile.name, reason)
        self.run.registry.refused(profile, self.assignments[profile.name], reason)

    def _believed(self, profile: Profile, line: NodeReport, update: Update, lengths: outliers.Lengths) -> Update:
        """Return a good update as it enters the mean."""
        self.judge.believe(lengths)
        self._noted(profile, line, update)
        return self.run.mechanism.admitted(update)

    def _validated(self, profile: Profile, line: NodeReport, reply: Message | None) -> Update:
        """Return the update in a reply. Raises Refused."""
        run, report = self.run, self.report
        if cohort.drops_out(profile, run.context.federation.dropout, run.context.federation.seed, report.number):
            raise Refused("it dropped out (simulation.dropout)")
        if reply is not None and not reply.has_error():
            line.bytes_up = wire.size(reply.content)
            report.bytes_up += line.bytes_up
        assignment = self.assignments[profile.name]
        update = validation.validate_update(
            run.context.strategy, reply, profile.name, assignment, self.state, profile.num_examples
        )
        run.check(reply, line, self.state)
        if reason := head_rounds.refusal(run.context.config, update):
            raise Refused(reason)
        metrics = row_limits.counted(update.metrics, self.rows[profile.name])
        return replace(update, weight=float(metrics["num-examples"]), metrics=metrics)

    def _noted(self, profile: Profile, line: NodeReport, update: Update) -> None:
        """Add a good update's metrics to the report, as far as privacy allows."""
        run, silent = self.run, self.run.mechanism.hides_metrics
        line.metrics = {} if silent else dict(update.metrics)
        self.report.parameters_up += sum(delta.numel() for delta in update.delta.values())
        run.registry.answered(profile, self.state)
        if update.assignment.rank != self.assignments[profile.name].rank:
            run.registry.lower(profile, update.assignment.rank)
        if not silent and run.context.federation.collapse_factor:
            view = run.context.strategy.comparable(self.state, update)
            self.pulls.see(profile.name, update.weight, view, self._shapes)
        self._metered(update)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.state.tensors.items()}

    def combined(self, updates: Iterator[Update]) -> State:
        """Return the next state, or the same one if the round fails."""
        state, report = self.state, self.report
        with Spool(examination.room(self.run)) as kept:
            new = self._followed(kept.passing(updates))
            if not report.failed:
                new = self._examined(new, kept)
        if report.failed:
            LOG.error("[ROUND %d] failed, the state stays: %s", report.number, report.failed)
            return state
        report.train = means([line.metrics for line in report.nodes if not line.refused])
        left_out = {line.node for line in report.nodes if line.refused}
        for node, pull in self.pulls.read().items():
            if node not in left_out:
                self.run.context.run_state.pulled(node, pull)
        return new

    def _followed(self, updates: Iterator[Update]) -> State:
        """Return the state that follows from all good updates, if the round does not fail."""
        state, report = self.state, self.report
        first = next(updates, None)
        combined = {} if first is None else self._rule(itertools.chain([first], updates))
        good = [line.node for line in report.nodes if not line.refused]
        LOG.info("aggregate_train: Received %d results and %d failures", len(good), len(report.nodes) - len(good))
        if reason := self._shortage(len(good)):
            report.failed = reason
            return state
        new = self._applied(combined, len(good))
        if wild := validation.not_finite({**new.tensors, **_entered(state, new)}):
            nodes = ", ".join(good)
            report.failed = f"the new state would hold NaN or infinity in '{wild}', from the updates of {nodes}"
        return new

    def _rule(self, updates: Iterable[Update]) -> Tensors:
        return compatibility.combination(self.run.context.strategy)(self.state, updates)

    def _applied(self, combined: Tensors, good: int) -> State:
        """Return the state that follows from the combination of this many good updates."""
        run, state = self.run, self.state
        like = truncated(run.context.strategy.expected(state, self.widest), self.widest.rank)
        change = run.mechanism.combined(combined, good, like)
        optimizer = run.context.strategy.server_optimizer
        if head_rounds.makes_head(run.context.config, self.report.number):
            change, optimizer = head_rounds.changed(run.context.config, state, change), None
        if optimizer is None:
            return run.context.strategy.apply(state, change, self.report.number)
        step, moments = stepped(optimizer, state.tensors, state.server, change)
        new = run.context.strategy.apply(state, step, self.report.number)
        return replace(new, server=new.server | moments)

    def _examined(self, new: State, kept: Spool) -> State:
        """Return the new state, or the state without the updates that do harm."""
        run, report = self.run, self.report

        def combine(updates: Iterable[Update]) -> State:
            return self._applied(self._rule(updates), len(kept))

        verdict = examination.examined(run, report.number, self.state, new, kept, combine)
        if not verdict.left_out:
            return new
        for line in report.nodes:
            if reason := verdict.left_out.get(line.node):
                line.refused = reason
                LOG.warning("round %d: left out node %s: %s", report.number, line.node, reason)
        report.failed = self._shortage(sum(not line.refused for line in report.nodes))
        self.error = ErrorMeasurement()
        for update in kept:
            if update.node not in verdict.left_out:
                self._metered(update)
        return verdict.state

    def _metered(self, update: Update) -> None:
        if self.state.rank and not self.run.context.strategy.personalized and not self.run.mechanism.hides_metrics:
            self.error.see(self.run.context.strategy.trained(self.state, update), update.weight)

    def _shortage(self, good: int) -> str:
        """Return why this many good replies are too few; empty if they are enough.

        They always are if noise hides who was drawn: a failed round would reveal to a node that sends no good reply
        whether others did.
        """
        sampled = len(self.report.nodes)
        if self.run.mechanism.steadfast:
            if good < sampled:
                said = "round %d: %d of %d replies were good; the noise is a whole cohort's"
                LOG.warning(said, self.report.number, good, sampled)
            return ""
        needed = max(min(1, sampled), math.ceil(self.run.context.federation.min_success_fraction * sampled - 1e-9))
        if good >= needed:
            return ""
        reasons = sorted({line.refused for line in self.report.nodes if line.refused})
        return f"{good} of {sampled} replies were good, {needed} are needed: {'; '.join(reasons[:3])}"


def _entered(before: State, after: State) -> dict[str, torch.Tensor]:
    """Return the tensors that a round has added to the journal."""
    entries = after.journal[len(before.journal) :]
    return {f"{name} (entry {n})": tensor for n, entry in enumerate(entries) for name, tensor in entry.tensors.items()}

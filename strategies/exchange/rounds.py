"""The round loop, written once for every strategy: draw a cohort, send, check replies, combine, apply, evaluate,
keep. All that changes lives in the locals here and in `_Run`; the strategy stays as it is.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from strategies.algebra.lowrank import truncated
from strategies.exchange import chain, checkpoint, cohort, door, post, wire
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.dispatch import Dispatch
from strategies.exchange.federation import Federation, NodeLine, Round, evaluated
from strategies.exchange.fit import misfits
from strategies.exchange.means import means
from strategies.exchange.mechanism import Mechanism, Plan
from strategies.exchange.meter import Meter
from strategies.exchange.opening import Opening, open_run
from strategies.exchange.roll import Roll
from strategies.exchange.session import Session, resumed
from strategies.exchange.vocabulary import Metrics, Profile, Refused, RunFailed, State, Ticket, Update
from task.config import TaskConfig
from task.model import build
from task.schema import ConfigError

LOG = logging.getLogger("flwr")


def run(
    strategy: Algorithm,
    grid: Grid,
    *,
    initial_arrays: ArrayRecord | None,
    num_rounds: int,
    timeout: float,
    train_config: dict[str, object],
    evaluate_config: dict[str, object],
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    federation: Federation,
) -> Result:
    """All rounds of a federation; see `Strategy.start`."""
    config = TaskConfig.read(train_config)
    TaskConfig.read(train_config | evaluate_config)
    if problems := misfits(strategy, config, federation):
        raise ConfigError(problems)
    torch.set_num_threads(config.threads)
    log_strategy(strategy)
    if federation.resume and initial_arrays is not None:
        raise RunFailed("initial_arrays were given to a run that is resumed: it goes on from its own state")
    kept, session = resumed(strategy.name, federation, num_rounds) if federation.resume else (None, Session())
    opening = open_run(strategy, grid, config, federation, timeout, session)
    held = _Run(strategy, grid, opening, federation, session, num_rounds, timeout, evaluate_config, evaluate_fn)
    if kept is None:
        state = held.initial(initial_arrays)
        session.rank = state.rank
    else:
        state = kept
    held.mechanism.start(state.tensors)
    limit = min(federation.max_failed_rounds, num_rounds)
    if session.failures >= limit:  # it ended by them, and may now fail as often again
        session.failures = 0
    result = Result()
    for number in range(held.first, num_rounds + 1):
        state, report = held.opened(state) if number == 0 else held.round(number, state)
        held.close(report, state, result)
        if report.stopped and number < num_rounds:
            LOG.info("the run ends after round %d: %s", number, report.stopped)
            break
        if session.failures >= limit:
            raise RunFailed(f"{session.failures} failed rounds in a row, the last because {report.failed}")
    result.arrays = wire.to_arrays(state)
    return result


def log_strategy(strategy: Algorithm) -> None:
    """Say what a strategy is, and with which options."""
    from strategies import to_flat

    LOG.info("Starting %s: %s", strategy.name, ", ".join(f"{k}={v}" for k, v in to_flat(strategy).items()))


@dataclass
class _Run:
    """One run in progress: what stays the same from round to round."""

    strategy: Algorithm
    grid: Grid
    opening: Opening
    federation: Federation
    session: Session
    rounds: int
    timeout: float
    evaluate_config: dict[str, object]
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None
    first: int = field(init=False)  # round of this process
    roll: Roll = field(init=False)
    dispatch: Dispatch = field(init=False)
    mechanism: Mechanism = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.session.round + 1
        self.roll = Roll(self.strategy, self.grid, self.opening, self.federation, self.timeout, self.session)
        self.dispatch = Dispatch(self.strategy, self.grid, self.opening, self.roll, self.evaluate_config, self.session)
        held, nodes = self.federation, len(self.roll.present)
        plan = Plan(self.rounds, nodes, held.fraction_train, held.min_train_nodes, held.seed)
        self.mechanism = chain.mechanism(self.strategy, plan)
        if self.session.privacy:
            self.mechanism.restore(self.session.privacy)
        if spent := self.mechanism.exhausted():
            raise RunFailed(f"nothing left to do: {spent}")
        if promise := self.mechanism.promise():
            LOG.info("privacy: %s", promise)

    # ------------------------------------------------------------------ before and after a round

    def initial(self, arrays: ArrayRecord | None) -> State:
        """The state that somebody handed over, or the strategy's own at the largest rank that anyone trains."""
        if arrays is not None:
            return wire.from_arrays(arrays)
        rank = max(ticket.rank for ticket in self.roll.tickets(0, self.rounds).values())
        model = build(self.opening.base, self.opening.config, rank, "cpu")
        return self.strategy.initial(model)

    def opened(self, state: State) -> tuple[State, Round]:
        """Round 0: nothing is trained, the untrained state is evaluated."""
        report = self._report(0)
        self._evaluate(report, state)
        return state, report

    def close(self, report: Round, state: State, result: Result) -> None:
        """After a round: score it on the server, keep it, report it."""
        report.privacy, report.stopped = self.mechanism.spent(), self.mechanism.exhausted()
        report.parameters = sum(tensor.numel() for tensor in state.tensors.values())
        if self._due(report.number):
            self._score(report, state, result)
        if report.train:
            result.train_metrics_clientapp[report.number] = MetricRecord(dict(report.train))
        if report.evaluated_by_nodes:
            result.evaluate_metrics_clientapp[report.number] = MetricRecord(dict(report.evaluated_by_nodes))
        if self.federation.on_round is not None:
            self.federation.on_round(report, state)
        self.session.round = report.number
        self.session.failures = self.session.failures + 1 if report.failed else 0
        self.session.privacy = self.mechanism.memory()
        if self.federation.checkpoint is not None:
            about = {"round": report.number, "seed": self.federation.seed, "strategy": self.strategy.name}
            checkpoint.save(self.federation.checkpoint / checkpoint.LAST, state, about | self.session.about())
        if self.federation.on_kept is not None:
            self.federation.on_kept(report, state)

    def _due(self, number: int) -> bool:
        """Is the state evaluated in this round?"""
        return evaluated(number, self.rounds, self.federation.evaluate_every) or bool(self.mechanism.exhausted())

    def _score(self, report: Round, state: State, result: Result) -> None:
        """Evaluate the state on the server, where somebody said how."""
        if self.federation.score is not None:
            report.evaluated_by_server = self.federation.score(state)
            scores = MetricRecord(dict(report.evaluated_by_server))
            result.evaluate_metrics_serverapp[report.number] = scores
        if self.evaluate_fn is not None:
            scored = self.evaluate_fn(report.number, wire.to_arrays(state))
            if scored is not None:
                report.evaluated_by_server = dict(scored)  # type: ignore[arg-type]
                result.evaluate_metrics_serverapp[report.number] = scored

    # ------------------------------------------------------------------ one round

    def round(self, number: int, state: State) -> tuple[State, Round]:
        """Train a cohort; the new state and what happened. The state stays where too few replies are good."""
        began = time.monotonic()
        LOG.info("[ROUND %d/%d]", number, self.rounds)
        report = self._report(number)
        self.roll.call(report)
        report.resting = self.roll.resting(number)
        tickets = self.roll.tickets(number, self.rounds, state)
        rank = max((ticket.rank for ticket in tickets.values()), default=0)
        state = self.strategy.begin(state, number, rank)
        minimum = self.federation.min_train_nodes
        there = len(self.roll.present)
        awake = self.roll.awake(number, minimum)
        chosen = self.mechanism.cohort(awake, number)
        if chosen is None:
            chosen = self.roll.cohort("train", self.federation.fraction_train, minimum, number)
        LOG.info("configure_train: Sampled %d nodes (out of %d)", len(chosen), there)
        if there < minimum:
            report.failed = f"{there} nodes are there, min-train-nodes is {minimum}"
            return state, report
        self.mechanism.spend(awake, chosen)
        sent = self.dispatch.send(
            "train", number, state, [(profile, tickets[profile.name]) for profile in chosen], report
        )
        meter = Meter()
        updates = self._updates(state, sent, chosen, tickets, report, meter)
        started = len(state.journal)
        widest = max(tickets.values(), key=lambda ticket: ticket.rank)
        state = self._combined(state, updates, widest, report)
        if not report.failed:
            report.inexactness = meter.read(truncated(state.tensors, rank), state.journal[started:])
            self._evaluate(report, state)
        report.seconds = time.monotonic() - began
        return state, report

    def _report(self, number: int) -> Round:
        """A new one; what was spent on meeting the nodes counts to the first round of this process."""
        report, meeting = Round(number), self.opening.meeting
        if number == self.first:
            report.spent(meeting.bytes_up, meeting.bytes_down, meeting.bytes_base)
        return report

    def _combined(self, state: State, updates: Iterator[Update], widest: Ticket, report: Round) -> State:
        """The next state, or the same one where the round fails. `widest` is the ticket of the largest rank."""
        sampled = len(report.nodes)
        needed = max(min(1, sampled), math.ceil(self.federation.min_success_fraction * sampled - 1e-9))
        first = next(updates, None)
        combine = chain.rule(self.strategy)
        combined = {} if first is None else combine(state, itertools.chain([first], updates))
        good = sum(not line.refused for line in report.nodes)
        LOG.info("aggregate_train: Received %d results and %d failures", good, sampled - good)
        if good < needed:
            reasons = sorted({line.refused for line in report.nodes if line.refused})
            report.failed = f"{good} of {sampled} replies were good, {needed} are needed: {'; '.join(reasons[:3])}"
            LOG.error("[ROUND %d] failed, the state stays: %s", report.number, report.failed)
            return state
        like = truncated(self.strategy.expected(state, widest), widest.rank)
        combined = self.mechanism.combined(combined, good, like)
        self.mechanism.close([line.metrics for line in report.nodes if not line.refused])
        report.train = means([line.metrics for line in report.nodes if not line.refused])
        return self.strategy.apply(state, combined, report.number)

    def _updates(
        self,
        state: State,
        sent: list[post.Sent],
        chosen: list[Profile],
        tickets: dict[str, Ticket],
        report: Round,
        meter: Meter,
    ) -> Iterator[Update]:
        """Good updates in cohort order as their replies come; the others are logged with node and reason."""
        arrivals = post.replies(self.grid, sent, time.monotonic() + self.timeout)
        lines = {line.node: line for line in report.nodes}
        for profile, (_, reply) in zip(chosen, arrivals, strict=True):
            line, ticket = lines[profile.name], tickets[profile.name]
            gone = cohort.drops_out(profile, self.federation.dropout, self.federation.seed, report.number)
            if reply is not None and not reply.has_error() and not gone:
                line.bytes_up = wire.size(reply.content)
                report.bytes_up += line.bytes_up
            try:
                if gone:
                    raise Refused("it dropped out (simulation.dropout)")
                update = door.admit_update(self.strategy, reply, profile.name, ticket, state, profile.num_examples)
                self._check(reply, line, state)
            except Refused as reason:
                line.refused = str(reason)
                LOG.warning("round %d: dropped the reply of node %s: %s", report.number, profile.name, reason)
                self.roll.refused(profile, ticket, reason)
                continue
            line.metrics = {} if self.mechanism.silent else dict(update.metrics)
            report.parameters_up += sum(delta.numel() for delta in update.delta.values())
            self.roll.answered(profile, state)
            if update.ticket.rank != ticket.rank:
                self.roll.lower(profile, update.ticket.rank)
            if state.rank and not self.strategy.personal and not self.mechanism.silent:
                meter.see(self.strategy.trained(state, update), update.weight)
            yield self.mechanism.admitted(update)

    def _check(self, reply: Message | None, line: NodeLine, state: State) -> None:
        """Raise Refused unless a node stands where it was sent."""
        door.check_installed(reply, self.dispatch.echoes[line.node])
        if line.catches_up:
            door.check_proof(reply, self.dispatch.fingerprint(state))

    def _evaluate(self, report: Round, state: State) -> None:
        """Ask nodes to score the state on rows they keep for it, where the settings say so and it is time to."""
        if self.opening.config.evaluate == "server" or not self._due(report.number):
            return
        tickets = self.roll.tickets(report.number, self.rounds, state)
        chosen = self.roll.cohort("evaluate", self.federation.fraction_evaluate, 1, report.number)
        pairs = [(profile, tickets[profile.name]) for profile in chosen]
        scratch = Round(report.number)
        sent = self.dispatch.send("evaluate", report.number, state, pairs, scratch)
        answers: list[Metrics] = []
        arrivals = post.replies(self.grid, sent, time.monotonic() + self.timeout)
        for profile, line, (_, reply) in zip(chosen, scratch.nodes, arrivals, strict=True):
            try:
                metrics = door.admit_scores(reply, self.opening.config.metrics, report.number, profile.num_examples)
                self._check(reply, line, state)
                answers.append(metrics)
                scratch.bytes_up += wire.size(reply.content)  # type: ignore[union-attr]
                self.roll.answered(profile, state)
            except Refused as reason:
                self.roll.failed(profile, report.number, reason)
                LOG.warning("round %d: node %s did not evaluate: %s", report.number, profile.name, reason)
        report.bytes_down += scratch.bytes_down
        report.bytes_up += scratch.bytes_up
        report.parameters_down += scratch.parameters_down
        report.evaluated_by_nodes = means(answers)

"""Evaluate a state on the server, or by nodes on their evaluation rows."""

import logging
import time
from dataclasses import replace

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from strategies.exchange import head_rounds
from strategies.exchange.callback import RoundReport
from strategies.exchange.types import Metrics, Refused, State
from strategies.protocol import wire
from strategies.rounds import messaging, validation
from strategies.rounds.defence import row_limits
from strategies.rounds.means import means, medians
from strategies.rounds.run import Run
from task.kinds import registry as kinds
from task.prediction.ratings import RATINGS

LOG = logging.getLogger("flwr")


def by_server(run: Run, report: RoundReport, state: State, result: Result) -> None:
    """Evaluate the state on the server, if there is a way to."""
    if run.context.federation.score is not None:
        report.evaluated_by_server = run.context.federation.score(state)
        scores = MetricRecord(dict(report.evaluated_by_server))
        result.evaluate_metrics_serverapp[report.number] = scores
    if run.context.evaluate_fn is not None:
        scored = run.context.evaluate_fn(report.number, wire.to_arrays(head_rounds.whole(state)))
        if scored is not None:
            # a report has numbers; lists stay in the result, which gets the whole record
            numbers = {name: value for name, value in scored.items() if not isinstance(value, list)}
            report.evaluated_by_server = numbers
            result.evaluate_metrics_serverapp[report.number] = scored


def by_nodes(run: Run, report: RoundReport, state: State) -> None:
    """Ask nodes to score the state, if the settings say so and it is due."""
    if run.context.config.evaluate != "server" and run.due(report.number):
        _by_nodes(run, report, state, report.number if run.mechanism.exhausted() else run.context.rounds)


def at_an_early_end(run: Run, report: RoundReport, state: State) -> None:
    """Ask nodes to rate what the last state generates, which they would have done after the last round of all."""
    config, number = run.context.config, report.number
    if config.evaluate == "server" or config.generates(number, run.context.rounds):
        return
    if config.generates(number, number):
        _by_nodes(run, report, state, number)


def _by_nodes(run: Run, report: RoundReport, state: State, rounds: int) -> None:
    """Ask nodes to score the state of a round out of `rounds`; after the last one they rate what it generates, too."""
    assignments = run.registry.assignments(report.number, run.context.rounds, state)
    assignments = {name: replace(one, rounds=rounds) for name, one in assignments.items()}
    chosen = run.registry.cohort("evaluate", run.context.federation.fraction_evaluate, 1, report.number)
    pairs = [(profile, assignments[profile.name]) for profile in chosen]
    scratch = RoundReport(report.number)
    sent = run.dispatch.send("evaluate", report.number, state, pairs, scratch, len(pairs))
    answers: dict[str, Metrics] = {}
    config = run.context.config
    wanted = {**kinds.of(config).metrics, **(RATINGS if config.generates(report.number, rounds) else {})}
    arrivals = messaging.replies(run.context.grid, sent, time.monotonic() + run.context.timeout)
    for profile, line, (_, reply) in zip(chosen, scratch.nodes, arrivals, strict=True):
        try:
            metrics = validation.validate_scores(reply, wanted, report.number, profile.num_examples)
            run.check(reply, line, state)
        except Refused as reason:
            run.registry.failed(profile, report.number, reason)
            line.refused = str(reason)
            LOG.warning("round %d: node %s did not evaluate: %s", report.number, profile.name, reason)
        else:
            answers[profile.name] = line.metrics = metrics
            line.bytes_up = wire.size(validation.content(reply))
            scratch.bytes_up += line.bytes_up
            run.registry.answered(profile, state)
    if not run.mechanism.hides_metrics:
        report.evaluations = scratch.nodes
    report.bytes_down += scratch.bytes_down
    report.bytes_up += scratch.bytes_up
    report.parameters_down += scratch.parameters_down
    rows = run.rows({name: metrics["num-examples"] for name, metrics in answers.items()})
    found = means([row_limits.counted(metrics, rows[name]) for name, metrics in answers.items()])
    if found:
        report.evaluated_by_nodes, report.medians_of_nodes = found, medians(list(answers.values()))

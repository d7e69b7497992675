"""The round loop, written once for every strategy: train, evaluate, report, checkpoint.

Everything that changes lives in its locals and in `Run`; the strategy never changes.
"""

import logging
import time
from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from strategies.exchange import head_rounds
from strategies.exchange.callback import RoundReport, RunFacts
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.federation import Federation
from strategies.exchange.replay import initial_state
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import RunFailed, State
from strategies.protocol import checkpoint, wire
from strategies.rounds import evaluation
from strategies.rounds.callbacks import notified, tell_checkpoint, tell_round, tell_scores
from strategies.rounds.context import RunContext
from strategies.rounds.defence import collapse
from strategies.rounds.handshake.start import start
from strategies.rounds.run import Run
from strategies.rounds.run_state import RunState, identity, resumed
from strategies.rounds.training import train
from task.arithmetic import set_arithmetic
from task.config import TaskConfig
from task.features.once import FeatureFiles
from task.models.model import build
from task.schema import ConfigError, flatten
from task.storage.store import node_store

LOG = logging.getLogger("flwr")
FREE = ("device", "threads")  # keys that an evaluation may set differently from training


def run_federation(
    strategy: Strategy,
    grid: Grid,
    *,
    initial_arrays: ArrayRecord | None,
    num_rounds: int,
    timeout: float,
    train_config: Mapping[str, object] | TaskConfig,
    evaluate_config: Mapping[str, object],
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    federation: Federation,
) -> Result:
    """Run all rounds of a federation; see `Strategy.start`."""
    config = train_config if isinstance(train_config, TaskConfig) else TaskConfig.read(train_config)
    evaluating = TaskConfig.read({**flatten(config), **evaluate_config}) if evaluate_config else config
    if problems := _unused(config, evaluating):
        raise ConfigError(problems)
    if problems := incompatibilities(strategy, config, federation) + head_rounds.too_few(config, num_rounds):
        raise ConfigError(problems)
    set_arithmetic(config, federation.device)
    strategy.summary()
    if federation.resume and initial_arrays is not None:
        raise RunFailed("initial_arrays were given to a resumed run, which continues from its own state")
    kept, run_state = resumed(strategy, federation, num_rounds) if federation.resume else (None, RunState())
    context = RunContext(strategy, grid, config, evaluating, federation, run_state, num_rounds, timeout, evaluate_fn)
    run = Run(*start(context))
    if kept is None:
        state = _initial(run, initial_arrays)
        run_state.rank = state.rank
    else:
        state = kept
    run.mechanism.start(head_rounds.whole(state).tensors)
    try:
        with notified(federation.callbacks, _facts(run)):
            return _rounds(run, state)
    finally:
        FeatureFiles(node_store(), run_state.token).remove()  # of nodes on this machine that the last round left out


def _facts(run: Run) -> RunFacts:
    """Return the facts that callbacks get when a run starts."""
    context, nodes = run.context, tuple(profile.name for profile in run.registry.present)
    settings = flatten(context.config) | context.strategy.to_flat()
    return RunFacts(context.strategy.name, context.config, nodes, context.rounds, run.first, settings)


def _unused(config: TaskConfig, evaluating: TaskConfig) -> list[str]:
    """Return the keys that an evaluation must share with training but does not: the rows, the model and its tuning."""
    before, after = flatten(config), flatten(evaluating)
    changed = [key for key in after if after[key] != before[key] and key not in FREE]
    free = " and ".join(f"'{key}'" for key in FREE)
    return [f"evaluate_config: '{key}' cannot differ from train_config; {free} can" for key in changed]


def _initial(run: Run, arrays: ArrayRecord | None) -> State:
    """Return the initial state: the given arrays, or the strategy's own state at the largest rank that any node
    trains."""
    config = run.context.config
    if arrays is not None:
        if config.rounds_of_head:
            raise RunFailed("head-rounds and head-init are for a new model, not for one that initial_arrays continue")
        return _given(run, wire.from_arrays(arrays))
    rank = max(assignment.rank for assignment in run.registry.assignments(0, run.context.rounds).values())
    return initial_state(run.context.strategy, build(run.context.base, config, rank, "cpu"), config)


def _given(run: Run, state: State) -> State:
    """Return a state that was handed over. Raises RunFailed if it lacks what the tuning starts from."""
    tuning = run.context.config.tuning
    if tuning.starts_from_base and not any(entry.round == 0 for entry in state.journal[:1]):
        raise RunFailed(
            f"initial_arrays lack what tuning = '{tuning.name}' with these options starts from: give the arrays of a "
            "run with the same options, or none"
        )
    return state


def _rounds(run: Run, state: State) -> Result:
    """Run from the first round of this process to the last, or until the run has to end. Raises RunFailed."""
    run_state, result = run.context.run_state, Result()
    limit = min(run.context.federation.max_failed_rounds, run.context.rounds)
    if run_state.failures >= limit:  # the run ended by these failures, and may fail as often again
        run_state.failures = 0
    for number in range(run.first, run.context.rounds + 1):
        state, report = _round(run, number, state)
        state = _close(run, report, state, result)
        if report.rolled_back and (reason := collapse.hopeless(run)):
            raise RunFailed(f"round {number}: {report.rolled_back}; the run cannot continue: {reason}")
        over = bool(report.stopped) or number == run.context.rounds
        if run_state.failures and (over or run_state.failures >= limit):
            raise RunFailed(f"{run_state.failures} failed rounds in a row, the last because {report.failed}")
        if over:
            break
    if report.stopped and number < run.context.rounds:
        LOG.info("the run ends after round %d: %s", number, report.stopped)
    result.arrays = wire.to_arrays(head_rounds.whole(state))
    return result


def _round(run: Run, number: int, state: State) -> tuple[State, RoundReport]:
    """Train, and ask nodes for scores if due; nothing is trained in round 0."""
    began = time.monotonic()
    state, report = train(run, number, state) if number else (state, run.report(number))
    report.connected = run.registry.connections()
    if not report.failed:
        evaluation.by_nodes(run, report, state)
    report.seconds = time.monotonic() - began
    return state, report


def _close(run: Run, report: RoundReport, state: State, result: Result) -> State:
    """Finish a round: score its state on the server, report it, write a checkpoint. Return the state to continue
    with."""
    report.privacy, report.stopped = run.mechanism.spent(), run.mechanism.exhausted()
    report.parameters = sum(tensor.numel() for tensor in state.tensors.values())
    if run.due(report.number):
        evaluation.by_server(run, report, state, result)
        state = collapse.watched(run, report, state)
    _ask_to_end(run, report, state)
    if report.train:
        result.train_metrics_clientapp[report.number] = MetricRecord(dict(report.train))
    if report.evaluated_by_nodes:
        result.evaluate_metrics_clientapp[report.number] = MetricRecord(dict(report.evaluated_by_nodes))
    run.remember_privacy()
    tell_round(run.context.federation.callbacks, report, state)
    _keep(run, report, state)
    tell_checkpoint(run.context.federation.callbacks, report, state)
    return state


def _ask_to_end(run: Run, report: RoundReport, state: State) -> None:
    """Ask callbacks whether the run ends with this round; then its state is rated as the last one."""
    before = report.stopped
    tell_scores(run.context.federation.callbacks, report, state)
    if report.stopped and not before and not report.failed:
        evaluation.at_an_early_end(run, report, state)


def _keep(run: Run, report: RoundReport, state: State) -> None:
    """Write the checkpoint that the next round, or another process, continues from."""
    run_state, folder = run.context.run_state, run.context.federation.checkpoint
    run_state.round = report.number
    run_state.failures = run_state.failures + 1 if report.failed else 0
    if folder is not None:
        about = {"round": report.number} | identity(run.context.strategy, run.context.federation) | run_state.about()
        checkpoint.save(folder / checkpoint.LAST, state, about)
        collapse.swept(run)

"""The ServerApp: read the config, prepare base and data, run the strategy, write the results.

Problems are found before the first message wherever possible. A problem ends the run with a message that names its
cause, and with Flower's status `failed`.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server_app import data_notices
from server_app.callbacks.early_stopping import EarlyStopping
from server_app.callbacks.generations import Generations
from server_app.callbacks.predictions import Predictions
from server_app.callbacks.progress import Progress
from server_app.callbacks.results_folder import Results
from server_app.callbacks.tracker import Tracking
from server_app.config import RunConfig
from server_app.evaluation import Evaluator
from server_app.outputs import GO_TO, output_folder
from server_app.results.endings import hint, interrupted_in
from server_app.results.split import write_split
from server_app.resuming import alone, continued, given
from strategies.exchange.bare_base import found_base
from strategies.exchange.callback import Callback
from strategies.exchange.dry_run import rehearse
from strategies.rounds.handshake.resolve import needs_no_data, resolve
from strategies.rounds.handshake.start import wait_for_nodes
from task.arithmetic import set_arithmetic
from task.config import TaskConfig
from task.data.partition import partition
from task.data.prepared import data_index, prepare
from task.data.stand_in import stand_in
from task.storage.room import room
from task.storage.store import server_store
from task.training.rates import unusual

LOG = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume a federation from the run config in `context`."""
    federate(grid, RunConfig.read(continued(given(context.run_config))))


def federate(grid: Grid, run: RunConfig, callbacks: Sequence[Callback] = (), *, writes_model: bool = True) -> Path:
    """Run or resume a federation and return its results folder; `callbacks` are called in addition to its own. Without
    `writes_model` the folder gets numbers alone, and no tuned model."""
    folder = output_folder(run)
    for dead in interrupted_in(folder.parent):
        LOG.info("the run in %s was interrupted; %s", dead, hint(dead) or "it has no checkpoint to resume from")
    LOG.info("%s%s", GO_TO, folder)
    with room(folder), alone(folder), Results(folder, run, writes_model) as results, room(folder):
        _run(grid, run, results, callbacks)
    return folder


def _run(grid: Grid, run: RunConfig, results: Results, others: Sequence[Callback]) -> None:
    """Prepare the task and the evaluator, then run the rounds."""
    federation = run.federation()
    set_arithmetic(run.task, federation.device)
    nodes = wait_for_nodes(grid, federation)
    LOG.info("preparing data '%s'", run.task.data.name)
    task = resolve(run.task, server_store(), len(nodes))
    write_split(results.folder, task, len(nodes), server_store())
    results.notice(_noticed(run, task, len(nodes), federation.device))
    evaluator = None
    if task.evaluate in ("server", "both"):
        evaluator = Evaluator(run.strategy, task, federation.device, run.server.examine_rows)
    run.strategy.start(
        grid,
        num_rounds=run.server.num_server_rounds,
        timeout=run.server.round_timeout,
        train_config=task,
        federation=replace(
            federation,
            checkpoint=results.checkpoints,
            callbacks=(*_callbacks(run, results, evaluator), *others),
            score=evaluator,
            probe=evaluator.probe if evaluator else None,
        ),
    )


def _callbacks(run: RunConfig, results: Results, evaluator: Evaluator | None) -> Iterator[Callback]:
    """Return the callbacks of the run. Those that may end it come before those that write how it ended."""
    if run.server.early_stopping.patience or run.server.early_stopping.target:
        yield EarlyStopping(run.server.early_stopping, results.history.lines)
    if evaluator is not None and run.task.evaluate_generations:
        yield Generations(results.folder, results.history, evaluator, run.server.num_server_rounds)
    if evaluator is not None and run.server.report_predictions:
        count = run.server.report_predictions
        yield Predictions(results.folder, results.history, evaluator, count)
    yield results
    yield Progress()
    for tracker in run.trackers:
        yield Tracking(tracker, results.folder)


def _noticed(run: RunConfig, task: TaskConfig, num_nodes: int, device: str) -> Iterator[str]:
    """Run the model once, before any node is contacted, and return notices about learning rate, base and data. A node
    runs it if the server reads no weights.

    Raises DryRunError.
    """
    store = server_store()
    base, _ = found_base(run.strategy, task, store)
    parts = None if needs_no_data(task) else prepare(task, base.folder, store)
    rows = parts.train if parts else stand_in(task, base.folder)
    yield from parts.notices if parts else ()
    yield from () if base.bare else rehearse(run.strategy, task, base, rows, device)
    if parts is None:
        yield from filter(None, [unusual(task)])
        return
    plan = data_index(task, store)
    split = [] if task.data.partitioner.own_rows else partition(task, plan, num_nodes, store)
    yield from data_notices.of_run(task, plan, split)

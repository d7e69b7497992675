"""The ServerApp: read the config, settle base and data, run the strategy, leave results.

Everything that can be wrong is found before the first message; what is found then, or later, ends the
run with a message that names the cause and with Flower's status `failed`.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from server_app.config import RunConfig
from server_app.evaluation import Evaluator
from server_app.results import Results
from server_app.resuming import alone, continued, given
from strategies.exchange.dry_run import rehearse
from strategies.exchange.opening import needs_no_data, settled, wait_for_nodes
from task.base import server_base
from task.config import TaskConfig
from task.data import prepare
from task.room import room
from task.schema import flatten
from task.stand_in import stand_in
from task.store import server_store

LOG = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation from the run config in `context`, or go on with one."""
    hold(grid, RunConfig.read(continued(given(context.run_config))))


def hold(grid: Grid, run: RunConfig) -> Path:
    """Run a federation, or go on with one; the folder of its results."""
    folder = output_folder(run)
    LOG.info("results go to %s", folder)
    with room(folder), alone(folder), Results(folder, run) as results, room(folder):
        federate(grid, run, results)
    return folder


def federate(grid: Grid, run: RunConfig, results: Results) -> None:
    """Settle what the run starts from, then run the rounds; `results` hears of every one."""
    federation = run.federation()
    nodes = wait_for_nodes(grid, federation)
    LOG.info("preparing data '%s'", run.task.data.name)
    task = settled(run.task, server_store(), len(nodes))
    rehearsed(run, task, federation.device)
    results.begin(task)
    scores = task.evaluate in ("server", "both")
    run.strategy.start(
        grid,
        num_rounds=run.server.num_server_rounds,
        timeout=run.server.round_timeout,
        train_config=ConfigRecord(dict(flatten(task, changed_only=True))),
        federation=replace(
            federation,
            checkpoint=results.checkpoints,
            on_round=results.on_round,
            on_kept=results.on_kept,
            score=Evaluator(run.strategy, task, federation.device) if scores else None,
        ),
    )


def rehearsed(run: RunConfig, task: TaskConfig, device: str) -> None:
    """Run the model once, before any node is asked, and log what is to be said of base and data. Raises DryRunError."""
    base, store = server_base(task.model, server_store()), server_store()
    parts = None if needs_no_data(task) else prepare(task, base.folder, store)
    rows = parts.train if parts else stand_in(task, base.folder)
    for sentence in (*(parts.notices if parts else ()), *rehearse(run.strategy, task, base, rows, device)):
        LOG.warning("%s", sentence)


def output_folder(run: RunConfig) -> Path:
    """`<outputs>/<time>-<strategy>`, made here, and `<outputs>/latest` points to it; or that of the run to resume."""
    if run.server.resume:
        return Path(run.server.resume)
    outputs = Path(run.server.output_dir or Path.cwd() / "outputs")
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{run.strategy.name}"
    number = 0
    while True:
        folder = outputs / (stem if number == 0 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
    latest = outputs / "latest"
    draft = outputs / f".latest-{folder.name}"
    draft.symlink_to(folder.name, target_is_directory=True)
    draft.replace(latest)
    return folder

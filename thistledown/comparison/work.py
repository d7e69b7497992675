"""A process that runs federations one after another, so that torch is imported once for many."""

import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from thistledown.comparison.jobs import ALONE, Job

if TYPE_CHECKING:
    from server_app.config import RunConfig

ROUNDS = "num-server-rounds"
CHECKPOINTS = "checkpoints"
OF_THE_SPLIT = ("split.json", "report.html")  # of a node alone: they would show the rows of one node as all there are


def serve(connection: Connection) -> None:
    """Run each job that arrives, and answer with "" or why it could not run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, _leave)
    while (job := connection.recv()) is not None:
        connection.send(run(job))


def run(job: Job) -> str:
    """Run or resume a federation; what is printed goes to its log. Return "" if it is over, or why it is not."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "run.log").open("a", encoding="utf-8", buffering=1) as log:
        try:
            _federate(job, lambda line: print(line, file=log))
        except Exception as error:  # noqa: BLE001 - one run of many; the comparison tells it, and its summary does
            print(repr(error), file=log)
            if not job.over:
                return "; ".join(getattr(error, "problems", [str(error) or repr(error)]))
    _clear(job)
    return ""


def _federate(job: Job, say: Callable[[str], None]) -> None:
    from server_app.config import RunConfig
    from server_app.results.endings import at_work, locked
    from task.schema import ConfigError
    from thistledown.simulation.simulate import run_in_process

    config = _resumed(job, say)
    if config is None:
        if job.results.exists() and locked(job.results):
            raise ConfigError([at_work(job.results)])
        for before in [path for path in job.folder.iterdir() if path.is_dir() and not path.is_symlink()]:
            shutil.rmtree(before)
        job.results.unlink(missing_ok=True)
        config = RunConfig.read({**job.values, "output-dir": str(job.folder)})
    run_in_process(config, say, node_configs=job.node_configs, writes_model=False)


def _resumed(job: Job, say: Callable[[str], None]) -> "RunConfig | None":
    """Return the settings that resume an interrupted run; None if there is none, or if it has to begin anew."""
    from server_app.config import RunConfig
    from server_app.results.endings import SUMMARY, can_resume
    from server_app.resuming import continued
    from task.schema import ConfigError

    if not ((job.results / SUMMARY).exists() and can_resume(job.results)):
        return None
    try:
        return RunConfig.read(continued({"resume": str(job.results.resolve()), ROUNDS: job.values[ROUNDS]}))
    except ConfigError as error:  # such as a damaged checkpoint
        say(f"the run begins anew: {'; '.join(error.problems)}")
        return None


def _clear(job: Job) -> None:
    """Remove what only a run that goes on needs, if it is over."""
    if not job.over:
        return
    shutil.rmtree(job.results / CHECKPOINTS, ignore_errors=True)  # a run that failed early has none
    for name in OF_THE_SPLIT if job.kind == ALONE else ():
        (job.results / name).unlink(missing_ok=True)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End through `finally` blocks, so that the run is marked as interrupted; another signal changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(os.EX_OK)

"""`thistledown export`: the tuned model from a checkpoint, on any machine that has access to the base.

A checkpoint of a fully tuned model can be a journal of a few kilobytes a round: the model is rebuilt by replaying it.
"""

from collections.abc import Callable
from pathlib import Path

from server_app.config import RunConfig
from server_app.results.endings import METRICS
from server_app.results.recorded import Recorded
from server_app.results.tuned import write_merged, write_tuned
from server_app.resuming import settings_of
from strategies.protocol import checkpoint
from strategies.protocol.checkpoint import BEST
from task.models.base import BaseError
from task.schema import ConfigError
from task.storage.room import is_full
from task.storage.store import StoreError

STATES = {"last": checkpoint.LAST, "best": BEST}


def export(results: Path, which: str, to: Path | None, say: Callable[[str], None], *, merge: bool = False) -> Path:
    """Rebuild the model of state `which` of a results folder and write it to `to`/`which` (None: `results`/model).
    `merge`: as a plain transformers model, to `to`/`which`-merged.

    Returns the folder of the model. Raises ConfigError if the results folder lacks what is needed.
    """
    config = RunConfig.read(settings_of(results))
    path = results / "checkpoints" / STATES[which]
    try:
        state, about = checkpoint.load(path)
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError([f"cannot read the checkpoint {path}: {error}"]) from error
    try:
        recorded = Recorded.of(results)
    except ValueError as error:
        raise ConfigError([f"{results / METRICS} cannot be read: {error}"]) from error
    entries = f", {len(state.journal)} journal entries" if state.journal else ""
    say(f"rebuilding {config.task.model.name} after round {about['round']} of {config.strategy.name}{entries}")
    folder = (to or results / "model").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if merge:
            place = folder / f"{which}-merged"
            lines = write_merged(config, config.task, about["round"], state, place, recorded)
        else:
            place = folder / which
            lines = write_tuned(config, config.task, {which: (about["round"], state)}, folder, recorded)
    except (BaseError, StoreError) as error:
        raise ConfigError([str(error)]) from error
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError([f"--to {folder} cannot be written: {error.strerror}"]) from error
    say(f"the tuned model is in {place}; in Python:")
    for line in lines:
        say(line)
    return place

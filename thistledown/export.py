"""`thistledown export`: the tuned model from a checkpoint, on any machine that can get the base.

A checkpoint of a fully tuned model can be a journal of a few kilobytes a round: the model is rebuilt by replaying it.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from server_app.config import RunConfig
from server_app.results import BEST
from server_app.tuned import write_tuned
from strategies.exchange import checkpoint
from task.base import BaseError
from task.schema import ConfigError
from task.store import StoreError
from thistledown.settings import flat

STATES = {"last": checkpoint.LAST, "best": BEST}


def export(results: Path, which: str, to: Path | None, say: Callable[[str], None]) -> None:
    """Rebuild the model of state `which` of a results folder and write it to `to`/`which` (None: `results`/model).

    Raises ConfigError where the folder does not hold what is needed.
    """
    config = _config(results)
    path = results / "checkpoints" / STATES[which]
    try:
        state, about = checkpoint.load(path)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError([f"cannot read the checkpoint {path}: {error}"]) from error
    entries = f", {len(state.journal)} journal entries" if state.journal else ""
    say(f"rebuilding {config.task.model.name} after round {about['round']} of {config.strategy.name}{entries}")
    folder = to or results / "model"
    try:
        write_tuned(config.strategy, config.task, {which: state}, folder)
    except (BaseError, StoreError) as error:
        raise ConfigError([str(error)]) from error
    say(f"the tuned model is in {folder / which}")


def _config(results: Path) -> RunConfig:
    """The configuration that a run left, label names included."""
    path = results / "config.toml"
    try:
        return RunConfig.read(flat(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{results} is no results folder: {error}"]) from error

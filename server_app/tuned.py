"""Tuned models as folders: rebuilt from a base and a state, for peft or transformers to load."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from strategies.exchange.contract import Strategy
from strategies.exchange.journal import held
from strategies.exchange.vocabulary import State
from task.base import files, server_base
from task.config import EMBEDDED_MODEL, TaskConfig
from task.store import server_store


def write_tuned(strategy: Strategy, task: TaskConfig, states: Mapping[str, State], folder: Path) -> None:
    """The model of every state as `folder/<name>`; the embedded base, which is on nobody's hub, as `folder/base`.

    `task` names the labels. Raises BaseError for a base that cannot be had.
    """
    base = server_base(task.model, server_store())
    base_name = base.name
    if base.name == EMBEDDED_MODEL:
        place = folder / "base"
        place.mkdir(parents=True, exist_ok=True)
        for path in files(base.folder).values():
            shutil.copy(path, place)
        base_name = str(place)
    for name, state in states.items():
        held(strategy, base, task, state).save(folder / name, base_name)

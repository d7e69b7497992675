"""Tuned models as folders that peft or transformers load, rebuilt from a base and a state, each with a model card."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from server_app.config import RunConfig
from server_app.results.card import card
from server_app.results.recorded import Recorded
from strategies.exchange.bare_base import found_base
from strategies.exchange.types import State
from strategies.protocol.journal import held
from task.config import TaskConfig
from task.files.contents import ADAPTER
from task.models.base import BaseError
from task.models.finding import server_base
from task.models.merged import merged
from task.models.saving import save, save_base, saved_as
from task.models.usage import usage
from task.modes import as_the_folder
from task.storage.seal import SEAL
from task.storage.store import Store, server_store
from task.tunings import registry as tunings
from task.tunings.base import OWN

NAME = "tuned"  # of a folder that is merged


def write_tuned(
    run: RunConfig, task: TaskConfig, states: Mapping[str, tuple[int, State]], folder: Path, recorded: Recorded
) -> list[str]:
    """Write the model of every state to `folder/<name>`, and the base to `folder/base` if adapters cannot find it by
    its own name.

    `states` maps names to the number of a round and its state. `task` has the label names. Returns lines of Python that
    load the last model. Raises BaseError if the base is not available.
    """
    base, _ = found_base(run.strategy, task, server_store())
    lines: list[str] = []
    base_name = ""
    for name, (round, state) in states.items():
        place, model = folder / name, held(run.strategy, base, task, state)
        base_name = base_name or save_base(model, folder / "base")
        save(model, place, base_name)
        lines = usage(task, base, place, base_name if base_name == base.name and Path(base_name).is_dir() else "")
        (place / "README.md").write_text(card(run, task, base, round, recorded), encoding="utf-8")
        as_the_folder(place)
    return lines


def write_merged(
    run: RunConfig, task: TaskConfig, round: int, state: State, folder: Path, recorded: Recorded
) -> list[str]:
    """Write the model of a state to `folder` as a plain transformers model: an adapter is merged into its base.

    A merged weight is rounded to the base's own precision, so logits equal the adapter's up to that rounding. Returns
    lines of Python that load it. Raises BaseError if the base is not available, or the tuning cannot be merged.
    """
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:  # has room for a whole model
        write_tuned(run, task, {NAME: (round, state)}, Path(place), recorded)
        whole = Path(place) / NAME
        if (whole / ADAPTER).exists():
            whole = merged(whole, Store(Path(place) / "store"))
        elif saved_as(task) == OWN:
            problem = f"tuning = '{task.tuning.name}' adds parts that no plain model of transformers has"
            raise BaseError(f"{problem}, so it cannot be merged; leave out --merge", problem)
        kept = shutil.ignore_patterns(SEAL)  # which names places of this machine
        shutil.copytree(whole, folder, ignore=kept, dirs_exist_ok=True, copy_function=shutil.move)
    base, plain = server_base(task.model, server_store()), replace(task, tuning=tunings.load("full")())
    (folder / "README.md").write_text(card(run, task, base, round, recorded, merged=True), encoding="utf-8")
    as_the_folder(folder)
    return usage(plain, base, folder)

"""Tuned models as folders that peft or transformers load, rebuilt from a base and a state, each with a model card."""

from collections.abc import Mapping
from pathlib import Path

from server_app.config import RunConfig
from server_app.results.card import card
from strategies.exchange.bare_base import found_base
from strategies.exchange.types import State
from strategies.protocol.journal import held
from task.config import TaskConfig
from task.models.saving import save, save_base
from task.models.usage import usage
from task.modes import as_the_folder
from task.storage.store import server_store


def write_tuned(
    run: RunConfig, task: TaskConfig, states: Mapping[str, tuple[int, State]], folder: Path, nodes: int
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
        (place / "README.md").write_text(card(run, task, base, round, nodes), encoding="utf-8")
        as_the_folder(place)
    return lines

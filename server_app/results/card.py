"""The model card of a tuned model: the Hub's metadata, and how the model was trained.

It reveals nothing about rows or nodes and names no path of this machine.
"""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCardData

from server_app.config import RunConfig
from strategies.exchange import compatibility
from task.config import EMBEDDED_MODEL, TaskConfig
from task.kinds import registry as kinds
from task.models.base import HUB_ID, Base
from task.models.saving import saved_as
from task.models.usage import usage
from task.tunings import registry as tunings
from task.tunings.base import OWN, TRANSFORMERS

HERE, ELSEWHERE = ".", "path/to/the/base"  # in place of real folders


def card(run: RunConfig, task: TaskConfig, base: Base, round: int, nodes: int, *, merged: bool = False) -> str:
    """Return the README.md of the model after a round. `nodes` is how many took part, 0 if unknown. `merged`: an
    adapter was merged into its base, so that the folder is a plain transformers model."""
    plain = replace(task, tuning=tunings.load("full")()) if merged else task
    name, strategy = _hub_id(base), run.strategy
    wrappers = ", ".join(wrapper.strip() for wrapper in run.server.wrappers)
    promise = compatibility.mechanism(strategy, run.plan()).promise()
    facts = {
        "base": name or ("the embedded one of thistledown" if base.name == EMBEDDED_MODEL else "a private one"),
        **({"base fingerprint": f"`{base.fingerprint}`"} if base.fingerprint else {}),
        "task": task.task.kind,
        "strategy": strategy.name + (f", with {wrappers}" if wrappers else ""),
        "tuning": task.tuning.name + (", merged into the base" if merged else ""),
        "rounds": str(round),
        "nodes": str(nodes or "not counted"),
        "privacy": promise or "no differential privacy",
        "seed": str(task.seed),
    }
    front = ModelCardData(
        base_model=name or None,
        base_model_relation=("finetune" if saved_as(plain) == TRANSFORMERS else "adapter") if name else None,
        library_name=_library(plain),
        pipeline_tag=kinds.of(task).pipeline,
        tags=["thistledown", "federated-learning", strategy.name, task.tuning.name],
    )
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    private = not name and base.name != EMBEDDED_MODEL
    lines = "\n".join(usage(plain, base, HERE, ELSEWHERE if private else ""))
    return (
        f"---\n{front.to_yaml()}\n---\n\n# {task.task.kind}, tuned by federated learning\n\n"
        f"Trained with thistledown: nodes kept their data, a server combined what they learned.\n\n"
        f"| | |\n|---|---|\n{table}\n\n## Use\n\nIn this folder:\n\n```python\n{lines}\n```\n"
    )


def _hub_id(base: Base) -> str:
    """Return the base's name on the Hub; empty for a path and for the embedded base."""
    named = HUB_ID.fullmatch(base.name) and base.name != EMBEDDED_MODEL and not Path(base.name).is_dir()
    return base.name if named else ""


def _library(task: TaskConfig) -> str:
    return "thistledown" if saved_as(task) == OWN else saved_as(task)

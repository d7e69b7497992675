"""The model card of a tuned model: the Hub's metadata, and how the model was trained.

It names no data, no node and no path of this machine. Its scores are the only numbers that depend on held-out rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from server_app.config import RunConfig
from server_app.results.amounts import human
from server_app.results.measure import written
from server_app.results.recorded import Recorded
from strategies.exchange import compatibility
from task.config import EMBEDDED_MODEL, TaskConfig
from task.kinds import registry as kinds
from task.kinds.base import Kind
from task.models.base import HUB_ID, Base
from task.models.saving import saved_as
from task.models.usage import usage
from task.tunings import registry as tunings
from task.tunings.base import OWN, TRANSFORMERS

STEPS = ("learning-rate", "local-epochs", "local-steps", "batch-size", "optimizer")
HERE, ELSEWHERE = ".", "path/to/the/base"  # in place of real folders


def card(run: RunConfig, task: TaskConfig, base: Base, round: int, recorded: Recorded, *, merged: bool = False) -> str:
    """Return the README.md of the model after a round. `merged`: an adapter was merged into its base, so that the
    folder is a plain transformers model."""
    plain = replace(task, tuning=tunings.load("full")()) if merged else task
    name, kind = _hub_id(base), kinds.of(task)
    scores = recorded.scores(round, list(kind.metrics))
    front = ModelCardData(
        base_model=name or None,
        base_model_relation=("finetune" if saved_as(plain) == TRANSFORMERS else "adapter") if name else None,
        library_name=_library(plain),
        pipeline_tag=kind.pipeline,
        tags=["thistledown", "federated-learning", run.strategy.name, task.tuning.name],
        model_name=f"{task.task.kind.name} by {run.strategy.name}" if scores else None,
        eval_results=[_result(kind, metric, value) for metric, value in scores.items()] or None,
    )
    facts = "\n".join(f"| {key} | {value} |" for key, value in _facts(run, task, base, round, recorded, merged).items())
    private = not name and base.name != EMBEDDED_MODEL
    lines = "\n".join(usage(plain, base, HERE, ELSEWHERE if private else ""))
    return (
        f"---\n{front.to_yaml()}\n---\n\n# {task.task.kind.name}, tuned by federated learning\n\n"
        f"Trained with thistledown: nodes kept their data, a server combined what they learned.\n\n"
        f"| | |\n|---|---|\n{facts}\n\n{_quality(kind, round, recorded)}"
        f"## Use\n\nIn this folder:\n\n```python\n{lines}\n```\n"
    )


def _facts(
    run: RunConfig, task: TaskConfig, base: Base, round: int, recorded: Recorded, merged: bool
) -> dict[str, str]:
    """Return what is known of the model and depends on no row."""
    strategy, fingerprint = run.strategy, base.fingerprint or recorded.fingerprint
    wrappers = ", ".join(wrapper.strip() for wrapper in run.server.wrappers)
    promise = compatibility.mechanism(strategy, run.plan()).promise()
    up, down = recorded.traffic(round)
    spent = recorded.spent(round)
    return {
        "base": _hub_id(base)
        or ("the embedded one of thistledown" if base.name == EMBEDDED_MODEL else "a private one"),
        **({"base fingerprint": f"`{fingerprint}`"} if fingerprint else {}),
        "task": task.task.kind.name,
        "strategy": strategy.name + (f", with {wrappers}" if wrappers else ""),
        "tuning": task.tuning.name + (", merged into the base" if merged else ""),
        "settings": ", ".join(_settings(run)),
        "rounds": str(round),
        "nodes": str(recorded.nodes or "not counted"),
        **({"sent by nodes": human(up), "sent to nodes": human(down)} if recorded.lines else {}),
        "privacy": promise or "no differential privacy",
        **({"privacy spent": spent} if spent else {}),
        "seed": str(task.seed),
    }


def _settings(run: RunConfig) -> Iterator[str]:
    """Yield the keys that say how the model was trained: none names data or a path."""
    chosen = (run.strategy.name, run.task.tuning.name, *(wrapper.strip() for wrapper in run.server.wrappers))
    for key, value in run.flat.items():
        if key in STEPS or key.partition(".")[0] in chosen:
            yield f"`{key} = {value}`".replace("|", "\\|")  # in a cell of a table


def _quality(kind: Kind, round: int, recorded: Recorded) -> str:
    """Return the metrics of the round as a part of the card, with their source; empty if nothing was measured."""
    scores, before = (recorded.scores(number, list(kind.metrics)) for number in (round, 0))
    if not scores:
        return ""
    rows = "\n".join(
        f"| {kind.metrics[name].title} | {written(before[name]) if name in before else ''} | {written(value)} |"
        for name, value in scores.items()
    )
    head = "| metric | before training | this model |\n|---|---|---|"
    return f"## Quality\n\n{head}\n{rows}\n\nSource: {recorded.source(round)}.\n\n"


def _result(kind: Kind, metric: str, value: float) -> EvalResult:
    """Return a metric as the Hub reads it. The data stays unnamed."""
    return EvalResult(
        task_type=kind.pipeline,
        dataset_type="private",
        dataset_name="private",
        metric_type=metric,
        metric_name=kind.metrics[metric].title,
        metric_value=value,
    )


def _hub_id(base: Base) -> str:
    """Return the base's name on the Hub; empty for a path and for the embedded base."""
    named = HUB_ID.fullmatch(base.name) and base.name != EMBEDDED_MODEL and not Path(base.name).is_dir()
    return base.name if named else ""


def _library(task: TaskConfig) -> str:
    return "thistledown" if saved_as(task) == OWN else saved_as(task)

"""A dry run of the nodes' work: the configured tuning, strategy and wrappers, on the base itself."""

from dataclasses import replace

from strategies.exchange.head_rounds import class_statistics
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment
from task.config import CLASS_MEANS, TaskConfig
from task.data.rows import Rows
from task.device import kind
from task.models.base import Base
from task.models.model import build
from task.training.batches import Unsuited
from task.training.checkpointing import check_recomputes
from task.training.dry_run import DryRunError, dry_run
from task.training.dry_run_work import too_large
from task.training.trainer import Trainer


def rehearse(strategy: Strategy, config: TaskConfig, base: Base, rows: Rows, device: str) -> tuple[str, ...]:
    """Train a model of its own once, as a node will; return the notices.

    `device` is used only for models that would take minutes on the CPU: the CPU reports an index out of range, which
    makes an accelerator unusable for the process. Raises DryRunError, and the errors of `build`.
    """
    rank = max(config.tuning.budgets() or config.tuning.candidates())
    assignment = Assignment(round=1, rounds=1, seed=config.seed, rank=rank, noise=1.0)
    penalties = tuple(wrapper.penalty for wrapper in strategy.wrappers)

    def wrapped(trainer: Trainer) -> Trainer:
        for wrapper in strategy.wrappers:
            trainer = wrapper.training(trainer, assignment, {})
        return trainer

    model = build(base, config, rank, "cpu")
    if too_large(model, config) and kind(device) != "cpu":
        model = build(base, config, rank, device)
    if config.gradient_checkpointing:
        try:
            check_recomputes(model.module)
        except Unsuited as error:
            raise DryRunError(str(error)) from error
    if left_out := too_large(model, config):
        return (*model.notices, left_out)
    trainer = Trainer(config, rows, config.seed, model.device, penalties)
    if config.head_init == CLASS_MEANS:
        try:
            class_statistics(model, replace(trainer, rows=rows.select([0, 1])))
        except Unsuited as error:
            raise DryRunError(str(error)) from error
    said = dry_run(model, trainer, wrapped)
    return (*model.notices, *said)

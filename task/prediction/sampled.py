"""A sample of held-out rows, answered by a model in training."""

import numpy as np

from task.config import TaskConfig
from task.data.rows import Rows
from task.kinds import registry as kinds
from task.models.model import TunedModel
from task.prediction.answer import Exchange
from task.seeds import derive


def answered(model: TunedModel, config: TaskConfig, rows: Rows, device: str) -> list[Exchange]:
    """Return what a model writes in answer to at most `evaluate-generations` of these rows, drawn at random: the same
    ones at every call, whatever the seed of the run."""
    count = min(config.evaluate_generations, len(rows))
    drawn = np.random.default_rng(derive("generations")).choice(len(rows), count, replace=False)
    model.module.eval()
    folder = model.base.folder
    return list(kinds.of(config).exchanges(model.module, folder, config.data, rows.select(np.sort(drawn)), device))

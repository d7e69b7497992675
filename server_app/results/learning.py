"""A notice about a training loss that does not fall; the usual cause is the learning rate."""

from collections.abc import Sequence
from typing import Any

from server_app.results.measure import Measure, written
from task.config import TaskConfig
from task.kinds import registry as kinds
from task.training.rates import another

ROUNDS = 3  # rounds with a loss before a notice
FALLEN = 0.99  # share of the first loss; a smaller loss has fallen
LEARNED = 0.5  # share of the loss of guessing; a smaller loss has little room to fall
BETTER = 0.02  # share of the first score by which the best score must beat it


def not_falling(lines: Sequence[dict[str, Any]], config: TaskConfig, measure: Measure) -> str:
    """Return a notice if the training loss does not fall, or "" if it falls or it is too early to say.

    `lines` are the lines of metrics.jsonl so far. There is no notice for a run whose score has improved: on skewed
    rows the losses of nodes are small from the start and rise while the shared model improves.
    """
    losses = [line["train-loss"] for line in lines if line.get("train-loss") is not None]
    if len(losses) < ROUNDS or min(losses[1:]) < FALLEN * losses[0] or _better(lines, measure):
        return ""
    guessing = kinds.of(config).guessing(config.data.labels).get("loss")
    if guessing is not None and losses[-1] < LEARNED * guessing:
        return ""
    rate = another(config, rising=losses[-1] > losses[0] / FALLEN)
    guess = f"; guessing has {written(guessing)}" if guessing is not None else ""
    return (
        f"the training loss does not fall: {written(losses[0])} at first, {written(losses[-1])} after "
        f"{len(losses)} rounds{guess}. Try learning-rate = {rate:.2g} (it is {config.learning_rate:g})"
    )


def _better(lines: Sequence[dict[str, Any]], measure: Measure) -> bool:
    scores = [line["chosen-by"] for line in lines if line.get("chosen-by") is not None]
    if len(scores) < 2:
        return False
    first, best = scores[0], (min if measure.lowest else max)(scores[1:])
    return measure.better(best, first - BETTER * first if measure.lowest else first + max(BETTER, BETTER * first))

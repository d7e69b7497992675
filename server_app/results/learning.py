"""Does the training loss fall? Where it does not, most often the learning rate is to blame."""

from collections.abc import Sequence
from typing import Any

from server_app.results.measure import Measure, written
from task.config import TaskConfig
from task.kinds import registry as kinds
from task.training.rates import another

ROUNDS = 3  # with a loss, before anything is said
FALLEN = 0.99  # of the first loss: below, it has fallen
LEARNED = 0.5  # of the loss of guessing: below, there is little left to fall
BETTER = 0.02  # a share of the first score by which the best must beat it


def not_falling(lines: Sequence[dict[str, Any]], config: TaskConfig, measure: Measure) -> str:
    """Return what to say of a run whose training loss does not fall, "" where it does or nobody can tell yet.

    `lines` are those of metrics.jsonl so far. Nothing is said of a run that scores better than it began: losses of
    nodes with skewed rows are small from the start, and rise while the shared model gets better.
    """
    losses = [line["train-loss"] for line in lines if line.get("train-loss") is not None]
    if len(losses) < ROUNDS or min(losses[1:]) < FALLEN * losses[0] or _better(lines, measure):
        return ""
    guessing = kinds.of(config).guessing(config.data.labels).get("loss")
    if guessing is not None and losses[-1] < LEARNED * guessing:
        return ""
    rate = another(config, rising=losses[-1] > losses[0] / FALLEN)
    beside = f"; who guesses has {written(guessing)}" if guessing is not None else ""
    return (
        f"the training loss does not fall: {written(losses[0])} at first, {written(losses[-1])} after "
        f"{len(losses)} rounds{beside}. Try learning-rate = {rate:.2g} (it is {config.learning_rate:g})"
    )


def _better(lines: Sequence[dict[str, Any]], measure: Measure) -> bool:
    scores = [line["chosen-by"] for line in lines if line.get("chosen-by") is not None]
    if len(scores) < 2:
        return False
    first, best = scores[0], (min if measure.lowest else max)(scores[1:])
    return measure.better(best, first - BETTER * first if measure.lowest else first + max(BETTER, BETTER * first))

"""The usual learning rates of a tuning, and the rate to try if a run does not learn."""

import math

from task.config import CLASS_MEANS, EMBEDDED_MODEL, TaskConfig
from task.kinds.registry import of

SMALL = 10.0  # factor on the largest usual rate for the embedded model of 0.1 million weights
LARGE = 10**8  # parameters from which a base counts as a large language model
STARTING = (1e-4, 3e-4)  # rates that LoRA on large language models is usually started with, by AdamW


def usual(config: TaskConfig) -> tuple[float, float]:
    """Return the smallest and the largest usual rate for this tuning, optimizer and base."""
    low, high = config.tuning.usual_rates(config.optimizer)
    return low, high * SMALL if config.model.name == EMBEDDED_MODEL else high


def unusual(config: TaskConfig) -> str:
    """Return a warning if the rate is outside the usual range, else ""."""
    low, high = usual(config)
    if low <= config.learning_rate <= high or not config.learning_rate:
        return ""
    side = "above" if config.learning_rate > high else "below"
    return (
        f"learning-rate = {config.learning_rate:g} is {side} what is usual for tuning = '{config.tuning.name}' with "
        f"{config.optimizer}: {low:g} to {high:g}"
    )


def to_start_from(config: TaskConfig, parameters: int) -> str:
    """Return the rates that low-rank factors on a large language model usually start from, if the configured one is far
    from them, else "". In docs/model.md."""
    low, high = STARTING
    if not of(config).writes or not config.tuning.has_ranks or config.optimizer == "sgd" or parameters < LARGE:
        return ""
    if low / 10 <= config.learning_rate <= 10 * low:
        return ""
    return (
        f"learning-rate = {config.learning_rate:g}: adapters on language models of this size usually start from "
        f"{low:g} to {high:g}, with warmup-rounds and learning-rate-min"
    )


def of_head(config: TaskConfig, new: bool) -> str:
    """Return a sentence on the learning rate of a classifier's head and on the rounds that it trains alone in."""
    rate = config.rate_of_head(new)
    times = f", {rate / config.learning_rate:.3g} times the rest" if rate != config.learning_rate else ""
    first, last = config.rounds_of_head - config.head_rounds + 1, config.rounds_of_head
    span = f"round {first}" if first == last else f"rounds {first} to {last}"
    alone = f"; in {span} it trains alone" if config.head_rounds else ""
    origin = "from class means, in round 1" if config.head_init == CLASS_MEANS else "new" if new else "of the base"
    return f"{origin}, learning rate {rate:g}{times}{alone}"


def another(config: TaskConfig, rising: bool) -> float:
    """Return the rate to try if a run at the configured one does not learn; `rising`: its loss grew."""
    low, high = usual(config)
    rate = config.learning_rate
    if rate > high:
        return high / 10
    if rate < low:
        return low * 10
    return rate / 10 if rising or rate >= math.sqrt(low * high) else rate * 10

"""The usual learning rates of a tuning, and the rate to try if a run does not learn."""

import math

from task.config import CLASS_MEANS, EMBEDDED_MODEL, TaskConfig

SMALL = 10.0  # factor on the largest usual rate for the embedded model of 0.1 million weights


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

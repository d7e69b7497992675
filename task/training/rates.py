"""Learning rates that are usual for a tuning, and what to try where a run does not learn."""

import math

from task.config import EMBEDDED_MODEL, TaskConfig

# From published recipes: the fewer weights train, the larger the steps they take.
ADAMW = {
    "full": (1e-6, 1e-3),
    "lora": (1e-5, 5e-3),
    "dora": (1e-5, 5e-3),
    "adapter": (1e-5, 1e-2),
    "bias": (1e-5, 2e-2),
    "norm": (1e-5, 5e-2),
    "ssf": (1e-5, 2e-2),
    "ia3": (1e-4, 1e-1),
    "head": (1e-4, 1e-1),
    "prompt": (1e-4, 5e-1),
    "prefix": (1e-5, 1e-1),
}
SGD = {
    "full": (1e-5, 1.0),
    "lora": (1e-4, 1e1),
    "dora": (1e-4, 1e1),
    "adapter": (1e-4, 1e1),
    "bias": (1e-4, 1e1),
    "norm": (1e-4, 1e1),
    "ssf": (1e-4, 1e1),
    "ia3": (1e-3, 1e2),
    "head": (1e-4, 1e2),
    "prompt": (1e-3, 1e2),
    "prefix": (1e-3, 1e2),
}
FEW, SMALL = 2.0, 10.0  # times the largest: for adapters on few layers, for the embedded model of 0.1 million weights


def usual(config: TaskConfig) -> tuple[float, float]:
    """Return the smallest and the largest rate that people use for this tuning and optimizer."""
    low, high = (SGD if config.optimizer == "sgd" else ADAMW)[config.tuning]
    if config.tuning in ("lora", "dora") and config.lora.targets != ("all-linear",):
        high *= FEW
    if config.model.name == EMBEDDED_MODEL:
        high *= SMALL
    return low, high


def unusual(config: TaskConfig) -> str:
    """Return what to say of a rate that is outside what is usual, "" where it is not."""
    low, high = usual(config)
    if low <= config.learning_rate <= high or not config.learning_rate:
        return ""
    side = "above" if config.learning_rate > high else "below"
    return (
        f"learning-rate = {config.learning_rate:g} is {side} what is usual for tuning = '{config.tuning}' with "
        f"{config.optimizer}: {low:g} to {high:g}"
    )


def another(config: TaskConfig, rising: bool) -> float:
    """Return the rate to try where a run at the configured one does not learn; `rising`: its loss grew."""
    low, high = usual(config)
    rate = config.learning_rate
    if rate > high:
        return high / 10
    if rate < low:
        return low * 10
    return rate / 10 if rising or rate >= math.sqrt(low * high) else rate * 10

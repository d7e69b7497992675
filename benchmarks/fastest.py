"""Timing of short tasks on noisy machines."""

import time
from collections.abc import Callable


def fastest(*tasks: Callable[[], object], times: int = 5) -> list[float]:
    """Return the seconds of each task: the best of several, taken in turn."""
    best = [float("inf")] * len(tasks)
    for _ in range(times):
        for number, task in enumerate(tasks):
            began = time.perf_counter()
            task()
            best[number] = min(best[number], time.perf_counter() - began)
    return best

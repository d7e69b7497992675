"""Timing of short tasks on noisy machines."""

import time
from collections.abc import Callable


def fastest(
    *tasks: Callable[[], object], times: int = 5, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the seconds of each task, by this clock: the best of several, taken in turn."""
    best = [float("inf")] * len(tasks)
    for _ in range(times):
        for number, task in enumerate(tasks):
            began = clock()
            task()
            best[number] = min(best[number], clock() - began)
    return best

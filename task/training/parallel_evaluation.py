"""Parallel evaluation: score batches at the same time on idle cores. The result does not depend on their number."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from task.device import cores, kind

MOST = 8  # batches at a time on a CPU
Batch = TypeVar("Batch")
Score = tuple[float, ...]


def evaluate_in_parallel(score: Callable[[Batch], Score], batches: Iterable[Batch], at_once: int) -> list[Score]:
    """Return the scores of all batches, in their order; `at_once` of them are computed at a time, without gradients.

    Each batch uses as many torch threads as it would alone, so its bits are the same. Products have the caller's
    precision.
    """
    scored = torch.no_grad()(score)  # applied in each worker thread: torch stores these settings per thread
    if torch.is_autocast_enabled(device := "cpu") or torch.is_autocast_enabled(device := "cuda"):
        scored = torch.autocast(device, torch.get_autocast_dtype(device))(scored)
    every = list(batches)
    threads = min(at_once, len(every))
    if threads <= 1:  # starting a thread takes longer than scoring a few rows of a small model
        return [scored(batch) for batch in every]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(scored, every))


def batches_at_once(device: str, threads: int) -> int:
    """Return how many batches of `threads` torch threads each keep all cores busy; 1 on an accelerator."""
    return max(1, min(_most(device), cores() // threads))


def portion(budget: int, device: str) -> int:
    """Return the share of a budget that one batch may use. It is the same for any number of parallel batches, because
    the bits of a batch depend on its size."""
    return budget // _most(device)


def _most(device: str) -> int:
    return MOST if kind(device) == "cpu" else 1

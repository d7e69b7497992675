"""Batches that are scored at the same time, on cores that would idle; what comes of it does not depend on how many."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from task.device import cores, kind

MOST = 8  # at a time, on a CPU
Batch = TypeVar("Batch")
Score = tuple[float, ...]


def evaluate_in_parallel(score: Callable[[Batch], Score], batches: Iterable[Batch], at_once: int) -> list[Score]:
    """The scores of all batches, in their order; `at_once` of them are computed at a time, without gradients.

    Every one is computed by as many torch threads as without the others, so that its bits are the same.
    """
    scored = torch.no_grad()(score)  # in the thread that computes: torch keeps this by thread
    if at_once == 1:
        return [scored(batch) for batch in batches]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(scored, batches))


def batches_at_once(device: str, threads: int) -> int:
    """How many batches keep all cores busy that have `threads` torch threads each; one on an accelerator."""
    return max(1, min(_most(device), cores() // threads))


def portion(budget: int, device: str) -> int:
    """What one batch may take of a budget for all at a time. It is the same for however many there are, as the bits of
    a batch hang on its size."""
    return budget // _most(device)


def _most(device: str) -> int:
    return MOST if kind(device) == "cpu" else 1

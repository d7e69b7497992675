"""The leading singular vectors of a layer's weight."""

from typing import Any

import torch
from torch import nn

from task.tunings.base import TuningError

WHOLE = 1024  # of the smaller side: larger matrices are decomposed by a random projection, which is much faster
MORE, ITERATIONS = 16, 16  # of that: dimensions beyond the rank, and power iterations


def principal(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U (outputs x rank), S (rank,) and V^T (rank x inputs) in float64, whose product is close to the best
    approximation of a weight (outputs x inputs) at this rank.

    It is the best one (Eckart and Young) if the smaller side has at most 1,024 rows; else that of a randomised SVD
    (Halko, Martinsson, Tropp, arXiv 0909.4061). Machines differ in the last bits, and in signs.
    """
    matrix = weight.detach().cpu().double()
    if min(matrix.shape) <= WHOLE:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, min(rank + MORE, *matrix.shape), niter=ITERATIONS)
    return u[:, :rank], s[:rank], v[:, :rank].T


def check_rank(module: nn.Module, rank: int, chosen: str, option: str) -> None:
    """Raise TuningError if a layer that peft has adapted has fewer singular values than `rank`. The message says what
    was `chosen`, and which `option` to lower."""
    adapted: list[Any] = [layer for layer in module.modules() if hasattr(layer, "lora_A")]
    weights = [(layer.out_features, layer.get_base_layer().weight.numel()) for layer in adapted]
    smallest = min(((outputs, numbers // outputs) for outputs, numbers in weights), key=min)
    if rank > min(smallest):
        shape = " x ".join(map(str, smallest))
        raise TuningError(
            f"{chosen} takes singular values of the base, and a weight of {shape} has fewer than {rank}; "
            f"set {option} to at most {min(smallest)}"
        )

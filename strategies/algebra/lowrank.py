"""Pairs of low-rank factors: A is rank x inputs, B is outputs x rank, the adapter adds scaling * B A."""

from collections.abc import Mapping

import torch

from strategies.algebra.tensors import Tensors


def rank_axis(name: str) -> int | None:
    """The axis that counts ranks: 0 in A, 1 in B, None in anything else."""
    return 0 if ".lora_A." in name else 1 if ".lora_B." in name else None


def truncated(tensors: Mapping[str, torch.Tensor], rank: int) -> Tensors:
    """The leading `rank` slices of every factor; other tensors as they are. Views, not copies."""
    small: Tensors = {}
    for name, tensor in tensors.items():
        axis = rank_axis(name)
        keep = tensor.shape[axis] if axis is not None else 0
        small[name] = tensor if axis is None or rank >= keep else tensor.narrow(axis, 0, rank)
    return small

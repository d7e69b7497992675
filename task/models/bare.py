"""A model of a bare base: everything but the numbers of its weights, which nothing reads and which take no memory.

Each weight has its shape and dtype, one NaN in memory, and strides of zero. So whatever is drawn at random has the bits
that it has in the real model, and whatever is computed from a weight shows: it is NaN. Nothing can be written into such
a weight, either.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from task.config import TaskConfig
from task.files.size_limit import no_larger_than
from task.kinds import registry as kinds

Shapes = Mapping[str, tuple[int, ...]]


def absent(shape: tuple[int, ...], dtype: torch.dtype, value: float = float("nan")) -> torch.Tensor:
    """Return a tensor of this shape with one number in memory."""
    return torch.full((), value, dtype=dtype).expand(shape)


def is_absent(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is one of `absent`."""
    return tensor.numel() > 1 and not any(tensor.stride())


def blank(settings: Any, config: TaskConfig, shapes: Shapes) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the class of the model that `settings` describe, and what its files would hold: tensors of these shapes,
    or, without any, of all the model's own. torch's random state stays.

    They are zeros: libraries compare tensors that are stored twice. `take_out` removes them after loading.
    """
    import transformers
    from transformers.initialization import no_init_weights

    auto, trusted = getattr(transformers, kinds.of(config).auto_class), config.model.trust_remote_code
    bound = no_larger_than(shapes) if shapes else nullcontext()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights(), bound:
        module = auto.from_config(settings, trust_remote_code=trusted)
    found = shapes or {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    dtype = getattr(torch, config.model.dtype)
    return type(module), {name: absent(shape, dtype, 0.0) for name, shape in found.items()}


def take_out(module: Any, drawn: list[str]) -> None:
    """Put NaN in place of all weights that were not `drawn` at random."""
    for name, parameter in module.named_parameters():
        if name not in drawn:
            parameter.data = absent(tuple(parameter.shape), parameter.dtype)

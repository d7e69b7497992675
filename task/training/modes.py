"""Which parts of a model drop numbers at random, and whose running statistics move, while it trains."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from task.models.heads import still_parts
from task.models.model import TunedModel


def training_mode(module: nn.Module, live: Iterable[torch.Tensor]) -> None:
    """Turn on dropout. Let running statistics move only if they are exchanged (full tuning): otherwise nothing would
    restore them, and a node's result would depend on the nodes that the process served before."""
    module.train()
    exchanged = {id(tensor) for tensor in live}
    for part in module.modules():
        if isinstance(part, _NormBase) and id(part.running_mean) not in exchanged:
            part.eval()


def body_mode(model: TunedModel, live: Mapping[str, torch.Tensor]) -> None:
    """Turn dropout off in the body if the head alone trains."""
    if live.keys() <= model.head:
        for part in still_parts(model.module, [model.trained[name] for name in model.head]):
            part.eval()

"""Features: the inputs of the layer that computes a classifier's classes, one vector for every row.

They are those of evaluation: without dropout, and without gradients.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from task.models.model import TunedModel
from task.training.batches import Unsuited
from task.training.parallel_evaluation import portion
from task.training.trainer import Trainer

ROWS = 256  # rows whose features are computed at a time


def class_layer(tensors: Mapping[str, torch.Tensor], classes: int) -> tuple[str, str]:
    """Return the names of the weight (classes x features) and the bias (classes,) of the layer that computes the
    classes, among the tensors of a head. Raises Unsuited if there is no such layer, or more than one."""
    found = []
    for name, tensor in tensors.items():
        other = name.removesuffix("weight") + "bias"
        fits = name.endswith("weight") and tensor.ndim == 2 and tensor.shape[0] == classes
        if fits and other in tensors and tensors[other].shape == (classes,):
            found.append((name, other))
    if len(found) != 1:
        raise Unsuited(
            "head-init = 'ncm' needs a head that ends in one linear layer with a bias, and this model has none; set "
            "head-init = 'base'"
        )
    return found[0]


def features(model: TunedModel, layer: str, trainer: Trainer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the features (rows, d), float64 on the CPU, and the labels (rows,) of the trainer's rows, in batches.

    `layer` is the name of the weight of the layer that computes the classes. Raises Unsuited if the model gives this
    layer something else than one vector for every row.
    """
    weight, seen = model.trained[layer], list[torch.Tensor]()
    owner = next(m for m in model.module.modules() if any(p is weight for p in m.parameters(recurse=False)))

    def see(owner: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen[:] = [given[0].detach()]

    model.module.eval()
    handle = owner.register_forward_pre_hook(see)
    try:
        for positions in torch.split(torch.arange(len(trainer.rows)), portion(ROWS, trainer.device)):
            batch = trainer.rows.batch(positions, trainer.device)
            with torch.no_grad():
                model.module(**batch)
            if seen[0].shape != (len(positions), weight.shape[1]):
                raise Unsuited("head-init = 'ncm' needs one feature vector for every row; set head-init = 'base'")
            yield seen[0].double().cpu(), batch["labels"].cpu()
    finally:
        handle.remove()


def class_means(model: TunedModel, layer: str, trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, over the trainer's rows, the mean of one-hot label times features (classes, d) and the share of every
    class (classes,), float64: the sums and the counts of the classes, both divided by the number of rows."""
    classes, width = model.trained[layer].shape
    sums, counts = torch.zeros(classes, width, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    for found, labels in features(model, layer, trainer):
        sums.index_add_(0, labels, found)
        counts += torch.bincount(labels, minlength=classes)
    return sums / counts.sum(), counts / counts.sum()

"""Norm tuning: the weights and biases of normalisation layers, by peft."""

import warnings

from torch import nn

from task.config import TaskConfig
from task.tunings.trainable import Head, TuningError, inside, is_norm


def norm(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Every normalisation layer outside the head trains (Zhao et al., arXiv 2312.11420), and a classifier's head.

    The layers start as copies of the base's, so the model is the base. Saved as a peft folder.
    """
    from peft import LNTuningConfig, get_peft_model

    layers = [name for name, child in module.named_modules() if is_norm(child) and not inside(name, head.modules)]
    if not layers:
        raise TuningError("tuning = 'norm' needs normalisation layers with weights; this model has none; use 'lora'")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)  # peft knows no class of norms by name
        chosen = LNTuningConfig(target_modules=layers, modules_to_save=head.trained)
        return get_peft_model(module, chosen)  # type: ignore[no-any-return]

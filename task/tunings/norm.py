"""Norm tuning: the weights and biases of normalisation layers, by peft."""

import warnings
from dataclasses import dataclass

from torch import nn

from task.tunings.base import Head, TaskKind, Tuning, TuningError
from task.tunings.parts.trainable import inside, is_norm


@dataclass(frozen=True)
class Norm(Tuning):
    """Norm tuning (Zhao et al., arXiv 2312.11420): normalisation layers outside the head, and a classifier's head.

    The layers start as copies of the base's, so the model is the base.
    """

    adds = False
    usual_adamw = (1e-5, 5e-2)
    usual_sgd = (1e-4, 1e1)
    new_head_adamw = 3.0

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        from peft import LNTuningConfig, get_peft_model

        layers = [name for name, child in module.named_modules() if is_norm(child) and not inside(name, head.modules)]
        if not layers:
            raise TuningError(
                "tuning = 'norm' needs normalisation layers with weights; this model has none; use 'lora'"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)  # peft lists no norm layers
            chosen = LNTuningConfig(target_modules=layers, modules_to_save=head.trained)
            return get_peft_model(module, chosen)  # type: ignore[no-any-return]

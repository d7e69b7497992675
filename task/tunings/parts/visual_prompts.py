"""Visual prompts: learned tokens among the patches of a vision transformer."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from task.tunings.base import Head, TuningError
from task.tunings.parts.trainable import blocks, hidden_size, inside, set_trainable

PROMPT = "visual_prompt"  # the parameter's name in its block
PLAIN = ("vit", "deit", "dinov2")  # model types whose blocks take (rows, tokens, features) in any token order


def with_visual_prompts(module: Any, head: Head, tokens: int, deep: bool) -> nn.Module:
    """Apply visual prompt tuning (Jia et al., arXiv 2203.12119, section 3.2); a classifier's head trains too.

    If `deep`, every block i gets `tokens` tokens P_i of its own in front, and their outputs are dropped. Otherwise P_1
    is added before the first block and removed after the last. The tokens are drawn from U(-v, v) with v^2 = 6 /
    (values in a patch + features), by the run's seed: the model differs from the base at the start.
    """
    if module.config.model_type not in PLAIN:
        raise TuningError(
            f"tuning = 'prompt' puts tokens into vision transformers of the types {', '.join(PLAIN)}, not into a "
            f"'{module.config.model_type}'; use tuning = 'lora' or 'bias'"
        )
    layers = blocks(module, "prompt")
    features = hidden_size(module, layers, "prompt")
    patch = nn.modules.utils._pair(module.config.patch_size)
    bound = math.sqrt(6 / (module.config.num_channels * math.prod(patch) + features))
    for layer in layers if deep else layers[:1]:
        given = next(layer.parameters())
        wide = torch.promote_types(given.dtype, torch.float32)
        start = torch.empty(tokens, features, device=given.device, dtype=wide).uniform_(-bound, bound)
        layer.register_parameter(PROMPT, nn.Parameter(start))
        layer.register_forward_pre_hook(_insert)
    for layer in layers if deep else layers[-1:]:
        layer.register_forward_hook(partial(_drop, tokens))
    return set_trainable(module, lambda name: name.endswith("." + PROMPT) or inside(name, head.trained))


def _insert(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs with the learned tokens in front."""
    hidden, *others = inputs
    learned = layer.visual_prompt.to(hidden.dtype).expand(len(hidden), -1, -1)
    return torch.cat([learned, hidden], dim=1), *others


def _drop(tokens: int, layer: nn.Module, inputs: Any, output: Any) -> Any:
    return (output[0][:, tokens:], *output[1:]) if isinstance(output, tuple) else output[:, tokens:]

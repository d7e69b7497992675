"""Soft prompts of text models, by peft."""

from typing import Any

from torch import nn

from task.tunings.base import Head

IMAGES = "image-classification"
CAUSAL = "causal-lm"


def with_soft_prompt(module: nn.Module, head: Head, kind: str, method: Any, tokens: int, **shape: int) -> nn.Module:
    """Return the model behind `tokens` learned tokens; `method` is peft's class of settings, `shape` what it needs."""
    from peft import get_peft_model

    task_type = "CAUSAL_LM" if kind == CAUSAL else "SEQ_CLS"
    module.requires_grad_(False)
    return get_peft_model(  # type: ignore[no-any-return]
        module, method(task_type=task_type, num_virtual_tokens=tokens, modules_to_save=[*head.trained], **shape)
    )

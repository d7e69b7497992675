"""Soft prompts of text models, by peft."""

from typing import Any

from torch import nn

from task.tunings.base import Head, TaskKind


def with_soft_prompt(
    module: nn.Module, head: Head, kind: TaskKind, method: Any, tokens: int, **shape: int
) -> nn.Module:
    """Return the model with `tokens` learned tokens in front; `method` is a peft config, `shape` its arguments."""
    from peft import get_peft_model

    module.requires_grad_(False)
    shape |= {"num_virtual_tokens": tokens}
    return get_peft_model(  # type: ignore[no-any-return]
        module, method(task_type=kind.peft_task_type, modules_to_save=[*head.trained], **shape)
    )

"""The base inside a tuned model: what the model computes without that which a tuning has added to it.

Layers that a tuning adds or changes have a switch, an attribute that is named as in peft's layers. peft's own
`disable_adapter` also changes which tensors require gradients, which belongs to the trainer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from task.tunings.parts.evaluating import evaluating

SWITCH = "_disable_adapters"


@contextmanager
def as_base(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the module that computes what the base does, in evaluation mode. Within this block the tuned module has no
    other function: nothing else may run it meanwhile."""
    switched = [part for part in module.modules() if getattr(part, SWITCH, None) is False]
    with evaluating(module):
        try:
            for part in switched:
                setattr(part, SWITCH, True)
            yield _without_prompts(module)
        finally:
            for part in switched:
                setattr(part, SWITCH, False)


def _without_prompts(module: Any) -> nn.Module:
    """Return the module behind peft's soft prompts, if there are any."""
    prompted = getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False)
    base: nn.Module = module.get_base_model() if prompted else module
    return base

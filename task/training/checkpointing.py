"""Gradient checkpointing (Chen et al., arXiv 1604.06174), by transformers: the backward pass makes the activations
inside each block anew, from the block's input, which is all that the forward pass keeps.

Random states are kept too, so dropout draws the same masks: gradients have the same bits.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from task.training.batches import Unsuited


def check_recomputes(module: Any) -> None:
    """Raise Unsuited if transformers cannot make this model's activations anew."""
    with checkpointed(module, True):
        pass


@contextmanager
def checkpointed(module: Any, wanted: bool) -> Iterator[None]:
    """Train with gradient checkpointing within this block, if `wanted`. Raises Unsuited."""
    if not wanted:
        yield
        return
    if not getattr(module, "supports_gradient_checkpointing", False):
        raise _unsuited()
    with _quiet():
        try:  # use_reentrant: the other way gives no gradients if a block's input needs none
            module.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:  # for a class that claims what no layer of it supports
            raise _unsuited() from error
    try:
        yield
    finally:
        with _quiet():
            module.gradient_checkpointing_disable()


def _unsuited() -> Unsuited:
    return Unsuited(
        "gradient-checkpointing = true: transformers does not support it for this model; set it to false, and "
        "micro-batch-size to fewer rows"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' notice that version 6 will have other names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield

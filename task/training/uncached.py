"""Training without the key-value cache, which only helps to generate.

With it, transformers copies keys and values in every forward pass; the attention of GPT-2 then sums in another order
than it does under gradient checkpointing, which goes without the cache, and gradients differ in their last bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uncached(module: Any) -> Iterator[None]:
    """Keep no keys and values within this block, whatever the model's config.json says of `use_cache`."""
    config = getattr(module, "config", None)  # none: not a model of transformers
    settings = config.get_text_config(decoder=True) if config is not None else None
    said = getattr(settings, "use_cache", None)
    if settings is None or said is None:
        yield
        return
    settings.use_cache = False
    try:
        yield
    finally:
        settings.use_cache = said

"""Texts that a language model writes: greedily, several prompts at a time, with a cache of keys and values."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from task.data.encoding.texts import padding
from task.prediction.answer import Prediction

PROMPTS = 16  # answered at a time


def generate(
    module: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], most_new: int, device: str, place: Any
) -> Iterator[Prediction]:
    """Yield the answer to every prompt, of at most `most_new` tokens, in their order.

    `place` is the folder of the base, for errors. Raises DataError for a tokenizer without a token to pad with.
    """
    pad = padding(tokenizer, place)
    for start in range(0, len(prompts), PROMPTS):
        part = prompts[start : start + PROMPTS]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in part], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part], device=device)
        with torch.no_grad():
            found = module.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, generation_config=settings_of(module, tokenizer, most_new, pad)
            )
        for row in found[:, width:]:
            yield Prediction(tokenizer.decode(row, skip_special_tokens=True).strip())


def settings_of(module: nn.Module, tokenizer: Any, most_new: int, pad: int) -> Any:
    """Return the settings of greedy generation, with the model's own end tokens, else the tokenizer's."""
    from transformers import GenerationConfig

    own = getattr(module, "generation_config", None)
    ends = getattr(own, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return GenerationConfig(max_new_tokens=most_new, do_sample=False, pad_token_id=pad, eos_token_id=ends)

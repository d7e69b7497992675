"""Texts that an encoder-decoder writes: greedily, several prompts at a time."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from task.data.encoding.seq2seq import Seq2SeqEncoder
from task.data.encoding.texts import padding, tokenizer_in
from task.data.raw import Raw
from task.data.rows import Tokens
from task.prediction.answer import Prediction
from task.prediction.generation import PROMPTS, settings_of


def completions(
    module: nn.Module, encoder: Seq2SeqEncoder, raw: Raw, rows: NDArray[np.int64], device: str
) -> Iterator[Prediction]:
    """Yield the completion of every row, of at most as many tokens as in training. Raises DataError."""
    tokenizer = tokenizer_in(encoder.base)
    pad = padding(tokenizer, encoder.base)
    settings = settings_of(module, tokenizer, encoder.completion, pad)
    for name in ("decoder_start_token_id", "forced_bos_token_id"):
        own = getattr(module.generation_config, name, None)
        setattr(settings, name, getattr(module.config, name, None) if own is None else own)
    for start in range(0, len(rows), PROMPTS):
        ids = encoder.sources(tokenizer, raw, rows[start : start + PROMPTS])
        tokens = Tokens(np.concatenate(ids), np.cumsum([0, *map(len, ids)]), pad)
        with torch.no_grad():
            found = module.generate(**tokens.batch(np.arange(len(ids)), device), generation_config=settings)  # type: ignore[operator]
        for row in found:
            yield Prediction(tokenizer.decode(row, skip_special_tokens=True).strip())

"""Texts that an encoder-decoder writes: greedily, several prompts at a time."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from task.data.encoding.seq2seq import Seq2SeqEncoder
from task.data.encoding.texts import padding, tokenizer_in
from task.data.raw import Raw
from task.data.rows import IGNORED, Rows, Tokens
from task.prediction.answer import Exchange, Prediction
from task.prediction.generation import PROMPTS, settings_of


def completions(
    module: nn.Module, encoder: Seq2SeqEncoder, raw: Raw, rows: NDArray[np.int64], device: str
) -> Iterator[Prediction]:
    """Yield the completion of every row, of at most as many tokens as in training. Raises DataError."""
    tokenizer = tokenizer_in(encoder.base)
    settings, pad = _settings(module, tokenizer, encoder), padding(tokenizer, encoder.base)
    for start in range(0, len(rows), PROMPTS):
        ids = encoder.sources(tokenizer, raw, rows[start : start + PROMPTS])
        tokens = Tokens(np.concatenate(ids), np.cumsum([0, *map(len, ids)]), pad)
        for text in _written(module, tokenizer, tokens.batch(np.arange(len(ids)), device), settings):
            yield Prediction(text)


def exchanges(module: nn.Module, encoder: Seq2SeqEncoder, rows: Rows, device: str) -> Iterator[Exchange]:
    """Yield every prepared row with its completion, as far as it was kept, and the one that the model writes. Raises
    DataError."""
    tokenizer = tokenizer_in(encoder.base)
    settings = _settings(module, tokenizer, encoder)
    for positions in torch.split(torch.arange(len(rows)), PROMPTS):
        batch = rows.batch(positions, device)
        references = [_text(tokenizer, row[row != IGNORED]) for row in batch.pop("labels")]
        pairs = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        prompts = [_text(tokenizer, row[mask]) for row, mask in pairs]
        yield from map(Exchange, prompts, references, _written(module, tokenizer, batch, settings))


def _settings(module: Any, tokenizer: Any, encoder: Seq2SeqEncoder) -> Any:
    """Return the settings of greedy generation, with what the model's decoder begins with."""
    settings = settings_of(module, tokenizer, encoder.completion, padding(tokenizer, encoder.base))
    for name in ("decoder_start_token_id", "forced_bos_token_id"):
        own = getattr(module.generation_config, name, None)
        setattr(settings, name, getattr(module.config, name, None) if own is None else own)
    return settings


def _written(module: Any, tokenizer: Any, batch: Mapping[str, torch.Tensor], settings: Any) -> list[str]:
    with torch.no_grad():
        found = module.generate(**batch, generation_config=settings)
    return [_text(tokenizer, row) for row in found]


def _text(tokenizer: Any, ids: torch.Tensor) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()

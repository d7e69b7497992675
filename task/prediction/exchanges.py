"""Rows of a language model, answered by generation: the prompt of each, its reference, and what the model writes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import nn

from task.config import Data
from task.data.encoding.prompt_tokens import asked_of
from task.data.encoding.prompts import ending
from task.data.rows import IGNORED, Rows
from task.prediction.answer import Exchange
from task.prediction.generation import generate

Ids = list[int]


def exchanges(module: nn.Module, base: Path, data: Data, rows: Rows, device: str) -> Iterator[Exchange]:
    """Yield every row with what a model, in evaluation mode, writes after its prompt.

    A reference is what the row teaches last: a completion, or the last turn of the assistant, as far as it was kept.
    The prompt is all before it; a long one loses its beginning, as `thistledown predict` has it. Raises DataError.
    """
    asked, tokenizer = asked_of(base, data)
    found = [last_learned(rows, row) for row in range(len(rows))]
    room = data.max_length - asked.most_new
    prompts = [ending(prompt, room, tokenizer.bos_token_id) for prompt, _ in found]
    texts = [[tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in pair] for pair in found]
    answers = generate(module, tokenizer, prompts, asked.most_new, device, base)
    for (prompt, reference), answer in zip(texts, answers, strict=True):
        yield Exchange(prompt, reference, str(answer.answer))


def last_learned(rows: Rows, row: int) -> tuple[Ids, Ids]:
    """Return the token ids before the last run of learned ones, at least one, and that run."""
    batch = rows.batch([row])
    ids, learned = batch["input_ids"][0].numpy(), batch["labels"][0].numpy() != IGNORED
    end = int(np.flatnonzero(learned)[-1]) + 1
    given = np.flatnonzero(~learned[:end])
    start = max(int(given[-1]) + 1 if len(given) else 0, 1)
    return ids[:start].tolist(), ids[start:end].tolist()

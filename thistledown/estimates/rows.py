"""Rows as the model gets them: which parts of a text are given and which are learned, or a row's label."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from task.data.encoding.preferences.pairs import AnswerPairs
from task.data.encoding.texts import tokenizer_in
from task.data.rows import IGNORED, Rows, TextPairs

CHARACTERS = 2000  # of a part of a row


def described(base: Path, rows: Rows, count: int, names: Sequence[str]) -> Iterator[str]:
    """Yield lines on the first `count` rows, for the model in folder `base`; `names` are those of its outputs."""
    tokenizer = tokenizer_in(base) if count and rows.inputs.tokens is not None else None
    for row in range(min(count, len(rows))):
        batch = rows.batch([row])
        if tokenizer is None:
            pixels = batch["pixel_values"]
            size = f"{tuple(pixels.shape[1:])}, {pixels.min():.2f} to {pixels.max():.2f}"
            yield f"row {row:<5} {size}{_label(batch, names)}"
            continue
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"].tolist()[0]
        if not isinstance(labels, list) or batch["labels"].is_floating_point():
            yield f"row {row:<5} {len(ids)} tokens{_label(batch, names)}"
            yield f"  text     {_text(tokenizer, ids)}"
            continue
        if isinstance(rows.inputs, TextPairs):
            yield f"row {row:<5} {len(ids)} tokens to read, {len(labels)} to write"
            yield f"  given    {_text(tokenizer, ids)}"
            yield f"  learned  {_text(tokenizer, labels)}"
            continue
        sides = ("chosen", "rejected") if isinstance(rows.inputs, AnswerPairs) else ("learned",)
        for side, ids, labels, there in zip(sides, batch["input_ids"], batch["labels"], batch["attention_mask"].bool()):
            yield from _marked(row, side, tokenizer, ids[there].tolist(), labels[there].tolist())


def _marked(row: int, side: str, tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> Iterator[str]:
    """Yield a sequence of a row in parts, those that are given and those that are not, which are called `side`."""
    learned = [label != IGNORED for label in labels]
    yield f"row {row:<5} {len(ids)} tokens, {sum(learned)} of them {side}"
    for own, part in groupby(zip(ids, learned, strict=True), key=lambda pair: pair[1]):
        yield f"  {side if own else 'given':<8} {_text(tokenizer, [token for token, _ in part])}"


def _label(batch: dict[str, Any], names: Sequence[str]) -> str:
    """Return what is learned of a row, which is a batch of its own."""
    label = batch["labels"][0]
    if not label.is_floating_point():
        return f", label '{names[int(label)]}'"
    if not label.ndim:
        return f", {names[0]} {float(label):g}"
    own = [f"'{name}'" for name, there in zip(names, label.tolist(), strict=True) if there]
    return f", labels {', '.join(own)}" if own else ", no label"


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Return tokens as text between quotes, special tokens among them, with line breaks escaped."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    more = f" and {len(text) - CHARACTERS:,} more characters" if len(text) > CHARACTERS else ""
    return json.dumps(text[:CHARACTERS], ensure_ascii=False) + more

"""How many tokens a row takes, guessed from the bytes of its texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from task.config import EMBEDDED_MODEL
from task.data.encoding.texts import longest, tokenizer_in
from task.data.guessing.columns import Column, Holds
from task.data.raw import Raw

BYTES = 3.5  # a token of English has about four; fewer, so that rows rather fit
SHARE = 95  # percentile of rows that shall fit
STEPS = (32, 64, 128, 256, 512)
LISTS, TURN = 1000, 8  # conversations and lists that are looked at; tokens around each turn


def max_length(raw: Raw, inputs: Sequence[Column], model: str) -> tuple[int, str]:
    """Return the tokens of a row to keep, and why. `model` is the name of the base: a folder has a limit of its own.

    Raises DataError if the folder has no tokenizer.
    """
    wanted = sum(_tokens(raw, column) for column in inputs)
    chosen = next((step for step in STEPS if step >= wanted), STEPS[-1])
    fits = f"tokens of a row; {SHARE} % of rows have at most about {wanted:,}"
    if model not in ("", EMBEDDED_MODEL) and Path(model).is_dir():
        most = longest(tokenizer_in(Path(model)), Path(model))
        if chosen > most:
            return int(most), f"{fits}, and the base takes {most:,.0f}"
    return chosen, fits + ("" if chosen >= wanted else "; more cost time and memory")


def _tokens(raw: Raw, column: Column) -> int:
    if column.holds in (Holds.TURNS, Holds.LIST):
        count = _of_turns if column.holds is Holds.TURNS else _of_words
        rows = np.unique(np.linspace(0, len(raw) - 1, LISTS).astype(np.int64))
        counts = [count(value) for value in raw.values(column.name, rows) if isinstance(value, list)]
        return int(np.percentile(counts, SHARE)) if counts else 0
    if not len(column.lengths):
        return 0
    lengths = np.pad(column.lengths, (0, column.rows - column.filled))  # empty ones are rows too
    characters = float(np.percentile(lengths, SHARE))
    return int(characters * column.size / max(1, int(np.sum(column.lengths))) / BYTES) + 2


def _of_turns(turns: list[object]) -> float:
    texts = [text for turn in turns if isinstance(turn, dict) for text in turn.values() if isinstance(text, str)]
    return sum(len(text.encode("utf-8", "replace")) for text in texts) / BYTES + TURN * len(turns)


def _of_words(words: list[object]) -> float:
    """Return the tokens of a list of words, of which each has at least one."""
    return 2 + sum(max(1.0, len(str(word).encode("utf-8", "replace")) / BYTES) for word in words)

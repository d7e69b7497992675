"""From the characters that an assistant wrote to tokens, and what a row keeps of tokens beyond its length."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.chats.templates import Span
from task.data.encoding.prompts import ending

Range = tuple[int, int]  # tokens of a row, from the first to the one after the last


class Cut(Enum):
    """What a row that is too long loses."""

    NOTHING = 0
    TURNS = 1  # its last turns
    EXCHANGE = 2  # a part of its first exchange


@dataclass(frozen=True)
class Learned:
    """The tokens of a row: `ids` (T,) int32, and which of them are `learned` (T,)."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    cut: Cut


def token_range(offsets: NDArray[np.int64], span: Span) -> Range | None:
    """Return the tokens that share a character with a span, and those between them; None if there are none. `offsets`
    (T, 2) are the characters of each token; special tokens that no text has written have none."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    inside = np.flatnonzero((starts < span[1]) & (ends > span[0]) & (ends > starts))
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else None


def without_space(text: str, span: Span, ends: Sequence[str]) -> Span:
    """Return a span without the white space behind one of the end tokens `ends`; else the same span."""
    written = text[span[0] : span[1]].rstrip()
    return (span[0], span[0] + len(written)) if written.endswith(tuple(ends)) else span


def fitted(ids: Sequence[int], ranges: Sequence[Range], most: int, answer: int, begin: int | None) -> Learned:
    """Return a row of at most `most` tokens, up to its last learned one; `ranges`, at least one, are learned.

    A longer row ends with the last range that fits. If there is none, it keeps the beginning of the first range, at
    most `answer` tokens or what is left, and the end of what comes before it; a leading token `begin` is kept.
    """
    whole = [one for one in ranges if one[1] <= most]
    if whole:
        return _marked(ids, whole, Cut.NOTHING if len(whole) == len(ranges) else Cut.TURNS)
    start, end = ranges[0]
    completion = ids[start:end][: max(answer, most - start)]
    prompt = ending(ids[:start], most - len(completion), begin)
    return _marked([*prompt, *completion], [(len(prompt), len(prompt) + len(completion))], Cut.EXCHANGE)


def _marked(ids: Sequence[int], ranges: Sequence[Range], cut: Cut) -> Learned:
    kept = np.array(ids[: ranges[-1][1]], np.int32)
    learned = np.zeros(len(kept), bool)
    for start, end in ranges:
        learned[start:end] = True
    learned[:1] = False  # nothing comes before the first token
    return Learned(kept, learned, cut)

"""Preferences as conversations: two that begin alike and end in a chosen and a rejected answer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.chats.conversations import ASSISTANT, Conversation, checked, turn_fault, turns_of
from task.data.raw import Raw

Pair = tuple[Conversation, Conversation]


def conversation_pairs(
    raw: Raw, prompt: str, answers: Sequence[str], rows: NDArray[np.int64], merged: bool
) -> list[Pair]:
    """Return the conversations with the chosen and with the rejected answer of these rows.

    `answers` are the two columns of answers. Without a column of prompts they have whole conversations, and the turns
    that both begin with are the prompt. `merged`: a system turn becomes the beginning of the first user turn. Raises
    DataError for the first row that is no such pair.
    """
    columns = [prompt, *answers] if prompt else [*answers]
    values = [list(raw.values(column, rows)) for column in columns]
    found = []
    for row, *parts in zip(rows, *values, strict=True):
        if prompt and isinstance(parts[0], str):
            problem = f"a text, and column '{answers[0]}' has turns"
            cure = "; leave data.prompt-column out if the conversations begin with the prompt"
            raise raw.fault(int(row), prompt, problem + cure)
        asked = ([prompt], parts[:1]) if prompt else ([], [])
        both = [
            turns_of(raw, [*asked[0], column], int(row), [*asked[1], part])
            for column, part in zip(answers, parts[-2:], strict=True)
        ]
        both = both if prompt else _parted(raw, answers, int(row), both)
        chosen, rejected = (
            checked(raw, column, int(row), one, merged) for column, one in zip(answers, both, strict=True)
        )
        found.append((chosen, rejected))
    return found


def _parted(raw: Raw, columns: Sequence[str], row: int, both: Sequence[Conversation]) -> list[Conversation]:
    """Return two conversations, of which only what follows the shared turns is learned. Raises DataError."""
    turns = [one.turns for one in both]
    most = min(map(len, turns)) - 1  # something is left to prefer
    shared = next((n for n in range(most) if turns[0][n] != turns[1][n]), most)
    if not shared:
        problem = f"not the first turn of column '{columns[1]}', so there is no prompt"
        cure = "; let both conversations begin with it, or name data.prompt-column"
        raise turn_fault(raw, row, both[0].places[0], problem + cure)
    for one, column in zip(both, columns, strict=True):
        if one.turns[shared]["role"] != ASSISTANT:
            problem = "the two conversations part here, and only answers of the assistant may differ"
            raise turn_fault(raw, row, (column, one.places[shared][1]), problem)
    return [replace(one, learned=[own and place >= shared for place, own in enumerate(one.learned)]) for one in both]

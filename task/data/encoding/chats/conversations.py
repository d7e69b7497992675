"""Conversations: from rows of turns, in the forms that people keep them in, to turns with a role and a content.

A turn is `{"role": ..., "content": ...}`, as OpenAI and TRL write it, or `{"from": ..., "value": ...}`, as ShareGPT
does. Roles are `system`, `user`, `assistant` and `tool`; other common names for them are read too. Turns count from 0,
as rows do. A turn of `"weight": 0` is not learned, as in OpenAI's form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.chats.templates import Chat
from task.data.encoding.texts import blank
from task.data.raw import DataError, Raw, nearest

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
ROLES = {
    **{name: name for name in (SYSTEM, USER, ASSISTANT, TOOL)},
    "developer": SYSTEM, "human": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
    "function": TOOL, "observation": TOOL,
}  # fmt: skip
UNMERGED = "a system turn without a user turn behind it cannot be merged (data.system-turn)"
FORMS = (("role", "content"), ("from", "value"))  # the keys of a turn


Place = tuple[str, int]  # of a turn: a column, and its number in that column's list


@dataclass(frozen=True)
class Conversation:
    """The turns of a row, the place of each in the data, and whether each is learned: turns of the assistant only."""

    turns: Chat
    places: list[Place]
    learned: list[bool]

    def with_merged_system(self) -> "Conversation | None":
        """Return the same with a system turn at the beginning of the user turn behind it; None: there is no such
        user turn."""
        if self.turns[0]["role"] != SYSTEM:
            return self
        system, *others = self.turns
        if not others or others[0]["role"] != USER:
            return None
        first = {"role": USER, "content": f"{system['content']}\n\n{others[0]['content']}"}
        return Conversation([first, *others[1:]], self.places[1:], self.learned[1:])


def conversations(raw: Raw, columns: Sequence[str], rows: NDArray[np.int64], merged: bool) -> list[Conversation]:
    """Return the conversations of these rows: one column has them whole, or two have what is given and what follows.

    `merged`: a system turn becomes the beginning of the first user turn. Raises DataError for the first row that is no
    conversation.
    """
    lists = [list(raw.values(column, rows)) for column in columns]
    return [
        checked(raw, columns[-1], int(row), turns_of(raw, columns, int(row), parts), merged)
        for row, *parts in zip(rows, *lists, strict=True)
    ]


def questions(raw: Raw, column: str, rows: NDArray[np.int64], merged: bool) -> list[Chat]:
    """Return the turns of these rows up to the last one that is not the assistant's. Raises DataError for the first row
    that is no conversation, and for one in which nobody but the assistant says anything."""
    found = []
    for row, part in zip(rows, raw.values(column, rows), strict=True):
        said = turns_of(raw, [column], int(row), [part])
        while said.turns and said.turns[-1]["role"] == ASSISTANT:
            said.turns.pop()
        if not said.turns:
            raise raw.fault(int(row), column, "nobody but the assistant says anything, so there is nothing to answer")
        whole = said.with_merged_system() if merged else said
        if whole is None:
            raise turn_fault(raw, int(row), said.places[0], UNMERGED)
        found.append(whole.turns)
    return found


def turn_fault(raw: Raw, row: int, place: Place, problem: str, seen: str = "") -> DataError:
    """Return the error for one turn of a row. As in `DataError.at`, neither row nor turn are public."""
    column, turn = place
    return DataError(
        f"{raw.where(row)}, column '{column}', turn {turn}: {problem}{seen}", f"column '{column}': {problem}"
    )


def checked(raw: Raw, column: str, row: int, read: Conversation, merged: bool) -> Conversation:
    """Return a conversation that can be learned, with its system turn in its place. `column` has what is learned.
    Raises DataError."""
    if not any(read.learned):
        problem = "no turn is the assistant's, so there is nothing to learn"
        roles = ", ".join(dict.fromkeys(one["role"] for one in read.turns))
        raise raw.fault(row, column, problem, f"; the roles are {roles}")
    found = read.with_merged_system() if merged else read
    if found is None:
        raise turn_fault(raw, row, read.places[0], UNMERGED)
    return found


def turns_of(raw: Raw, columns: Sequence[str], row: int, parts: Sequence[Any]) -> Conversation:
    """Return the turns of a row, as they are; `parts` are the values in `columns`. Raises DataError."""
    turns: Chat = []
    places: list[Place] = []
    learned: list[bool] = []
    for column, part in zip(columns, parts, strict=True):
        if not isinstance(part, list) or not part:
            raise raw.fault(row, column, "no list of turns", f", but {part!r:.60}")
        for number, value in enumerate(part):
            role, content, weight = _turn(raw, row, (column, number), value)
            turns.append({"role": role, "content": content})
            places.append((column, number))
            learned.append(role == ASSISTANT and bool(weight) and column == columns[-1])
    return Conversation(turns, places, learned)


def _turn(raw: Raw, row: int, place: Place, value: Any) -> tuple[str, str, int]:
    """Return role, content and weight of a turn; weight 0: the turn is not learned. Raises DataError."""

    def fault(problem: str, seen: str = "") -> DataError:
        return turn_fault(raw, row, place, problem, seen)

    keys = next((form for form in FORMS if isinstance(value, dict) and value.get(form[0]) is not None), None)
    if keys is None:
        raise fault("a turn has 'role' and 'content', or 'from' and 'value'", f", but this is {value!r:.60}")
    said, content, weight = value[keys[0]], value.get(keys[1]), value.get("weight")
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        near = nearest(said, ROLES) if isinstance(said, str) else ""
        hint = f"; did you mean '{near}'?" if near else ""
        raise fault(f"the role is none of {SYSTEM}, {USER}, {ASSISTANT}, {TOOL}", f": {said!r:.60}{hint}")
    if value.get("tool_calls"):
        raise fault("calls of tools (tool_calls) are not read; leave the row out, or write them into the content")
    if content is not None and not isinstance(content, str):
        raise fault(f"'{keys[1]}' is no text", f", but {content!r:.60}")
    if content is None or blank(content):
        raise fault(f"'{keys[1]}' is empty", f", and the role is {role}")
    if weight not in (None, 0, 1):
        raise fault("'weight' is neither 0 nor 1", f", but {weight!r:.60}")
    return role, content, 1 if weight is None else int(weight)

"""What a tuned language model is asked: the prompts of rows, without the answers, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.chats.conversations import questions
from task.data.encoding.chats.named import PLAIN
from task.data.encoding.chats.templates import Chat, filled_in, template_of
from task.data.encoding.completions import Columns, optional_texts
from task.data.encoding.prompts import bare_ids, ending, prompt_ids, prompts_of
from task.data.encoding.texts import check_tokens, read_texts, tokenizer_in
from task.data.raw import Raw
from task.data.settings import MERGED

Ids = Sequence[int]


@dataclass(frozen=True)
class Asked:
    """The prompts of rows for the language model in folder `base`, as in training: conversations up to the last turn
    that is not the assistant's, prompts as they are, or instructions; without these, texts that are continued."""

    base: Path
    data: Data

    def columns(self) -> dict[str, str]:
        """Return the columns that a row must have, each with the key that names it."""
        if self.data.messages_column:
            return {self.data.messages_column: "data.messages-column"}
        columns = Columns.of(self.data)
        given = [name for name in columns.required if name != columns.output] or [columns.output]
        return {name: key for name, key in columns.keys().items() if name in given}

    @property
    def most_new(self) -> int:
        """Return the number of tokens that an answer may have: those of a completion in training."""
        return self.data.max_completion_length or self.data.max_length // 2

    def prompts(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64]) -> list[Ids]:
        """Return the token ids of these rows; a long prompt loses its beginning. Raises DataError for the first row
        that cannot be asked."""
        [column, *_] = self.columns()
        ids = self._ids(tokenizer, raw, column, rows)
        check_tokens(ids, raw, column, rows)
        room = self.data.max_length - self.most_new
        return [ending(one, room, tokenizer.bos_token_id) for one in ids]

    def of_chat(self, tokenizer: Any, chats: Sequence[Chat]) -> list[list[int]]:
        """Return the token ids of conversations and of the beginning of an answer. Raises DataError."""
        template = template_of(self.data.template, tokenizer, self.base)
        with filled_in(template or PLAIN, tokenizer, self.base, self._day) as own:
            texts = own.texts(chats)
        return bare_ids(tokenizer, texts) if template else prompt_ids(tokenizer, texts)

    def _ids(self, tokenizer: Any, raw: Raw, column: str, rows: NDArray[np.int64]) -> list[list[int]]:
        columns = Columns.of(self.data)
        if self.data.messages_column or isinstance(next(raw.values(column, rows[:1]), None), list):
            return self.of_chat(tokenizer, questions(raw, column, rows, self.data.system_turn == MERGED))
        texts = read_texts(raw, column, rows)
        if columns.verbatim or not columns.instruction:
            return prompt_ids(tokenizer, texts)
        about = optional_texts(raw, columns.input, rows)
        template = template_of(self.data.template, tokenizer, self.base)
        with prompts_of(template, tokenizer, self.base, self._day) as ask:
            return ask(texts, about)

    @property
    def _day(self) -> str:
        return self.data.date or date.today().isoformat()


def asked_of(base: Path, data: Data) -> tuple[Asked, Any]:
    """Return what asks the model in folder `base`, and its tokenizer. Raises DataError."""
    return Asked(base, data), tokenizer_in(base)

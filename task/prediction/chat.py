"""A conversation with a tuned language model: each turn is answered with the earlier ones before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from task.config import Data
from task.data.encoding.chats.conversations import ASSISTANT, USER
from task.data.encoding.chats.templates import Chat, template_of
from task.data.encoding.completions import Columns
from task.data.encoding.prompt_tokens import Ids, asked_of
from task.data.encoding.prompts import ending, prompt_ids
from task.data.encoding.texts import check_length
from task.prediction.generation import generate
from task.prediction.streaming import Streamed, Write


class Conversation:
    """A conversation with a causal language model in evaluation mode. `base` has its tokenizer, and `data` says how it
    is asked: by its chat template, else by the plain one.

    A model that was tuned to continue texts, by a tokenizer without a chat template, knows no turns: it continues each
    text by itself (`has_turns`). Raises DataError for a template that cannot be used.
    """

    def __init__(self, module: nn.Module, base: Path, data: Data, device: str) -> None:
        self._module, self._base, self._data, self._device = module, base, data, device
        self._asked, self._tokenizer = asked_of(base, data)
        check_length(data.max_length, self._tokenizer, base)
        template, texts = template_of(data.template, self._tokenizer, base), Columns.of(data)
        self.has_turns = bool(template or data.messages_column or (texts.instruction and not texts.verbatim))
        self.turns: Chat = []

    def ask(self, text: str, write: Write) -> str:
        """Return the answer to a user's turn, and write it in pieces as it is generated. The turns before it that do
        not fit into data.max-length are left out. Raises DataError if the template refuses the turns; they then stay as
        they were."""
        asked: Chat = [*self.turns, {"role": USER, "content": text}]
        prompt = self._prompt(asked)
        streamed: Any = Streamed(self._module, self._tokenizer, write)
        [found] = generate(streamed, self._tokenizer, [prompt], self._asked.most_new, self._device, self._base)
        answer = str(found.answer)
        if self.has_turns:
            self.turns = [*asked, {"role": ASSISTANT, "content": answer}]
        return answer

    def _prompt(self, turns: Chat) -> Sequence[int]:
        room = self._data.max_length - self._asked.most_new
        ids = self._ids(turns)
        while len(ids) > room and len(turns) > 1:
            turns = turns[2:]
            ids = self._ids(turns)
        return ending(ids, room, self._tokenizer.bos_token_id)

    def _ids(self, turns: Chat) -> Ids:
        if self.has_turns:
            return self._asked.of_chat(self._tokenizer, [turns])[0]
        return prompt_ids(self._tokenizer, [turns[-1]["content"]])[0]

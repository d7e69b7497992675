"""Conversations in tokens, with a label for each token that the assistant wrote.

A conversation is rendered as one text and tokenised as one, without special tokens but those that the template writes.
What the assistant wrote in it are the spans that the template marks by `{% generation %}`; of a template without that
tag, an answer is what the text of the turns up to it has more than the text of the turns before it and the beginning of
an answer. White space behind an end token is not part of such an answer. Tokens that share a character with a span are
learned. A row ends with its last learned token: what follows changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.chats.conversations import ASSISTANT, SYSTEM, Conversation, conversations, turn_fault
from task.data.encoding.chats.named import PLAIN
from task.data.encoding.chats.templates import Refused, Span, Template, filled_in, template_of
from task.data.encoding.chats.tokens import Cut, Learned, Range, fitted, token_range, without_space
from task.data.encoding.completions import CompletionEncoder, called, dated, tells_date
from task.data.encoding.texts import (
    CHUNK,
    NO_TOKENIZER,
    check_ids,
    check_length,
    encoded,
    padding,
    read_tokens,
    small_files,
    tokenizer_in,
    write_tokens,
)
from task.data.raw import DataError, Raw
from task.data.rows import IGNORED, Completions, LabelledTokens, mapped
from task.data.settings import MERGED

EDITION = 1  # version of the stored format
Spelled = Callable[[Raw, NDArray[np.int64], Sequence[Conversation]], Iterator[tuple[list[int], list[Range]]]]


@dataclass(frozen=True)
class ChatEncoder:
    """An encoder of conversations as at most `max_length` token ids, by the tokenizer in folder `base`. If an exchange
    does not fit, at most `completion` of its tokens are the answer's, unless the rest needs fewer."""

    base: Path
    columns: tuple[str, ...]
    template: str
    merged: bool
    max_length: int
    completion: int
    day: str

    @classmethod
    def of(cls, base: Path, data: Data) -> "ChatEncoder":
        """Return the encoder of these settings."""
        columns = (data.messages_column,) if data.messages_column else (data.prompt_column, data.completion_column)
        share, day = data.max_completion_length or data.max_length // 2, data.date or date.today().isoformat()
        return cls(base, columns, data.template, data.system_turn == MERGED, data.max_length, share, day)

    def recipe(self) -> object:
        """Return everything but the rows that the tokens depend on."""
        day = self.day if tells_date(self.base, self.template) else ""
        sizes = [self.max_length, self.completion]
        return [EDITION, self.columns, self.template, self.merged, sizes, small_files(self.base), day]

    def source(self) -> str:
        """Return the source of the texts, in words. Raises DataError as `write` does."""
        return f"turns by {called(self.template, tokenizer_in(self.base), self.base)}"

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices on how many are cut. Raises DataError for the first row that is no
        conversation, or that the template does not take."""
        tokenizer = tokenizer_in(self.base)
        check_length(self.max_length, tokenizer, self.base)
        if not tokenizer.is_fast:
            problem = "does not say which characters a token is made of, which conversations need"
            raise DataError(f"the tokenizer in {self.base} {problem}", NO_TOKENIZER)
        found = list(self._rows(tokenizer, raw, rows))
        ids, pad = [row.ids for row in found], padding(tokenizer, self.base)
        check_ids(ids, pad, self.base)
        write_tokens(folder, part, ids, pad)
        labels = [np.where(row.learned, row.ids, IGNORED).astype(np.int64) for row in found]
        np.save(folder / f"{part}-labels.npy", np.concatenate([np.empty(0, np.int64), *labels]))
        day = dated(self.base, self.template, self.day) if part == "train" else ()
        return (*self._said(part, found), *day)

    def read(self, folder: Path, part: str) -> LabelledTokens:
        """Return the rows that `write` prepared, mapped into memory."""
        return LabelledTokens(read_tokens(folder, part), mapped(folder / f"{part}-labels.npy"))

    def _said(self, part: str, rows: Sequence[Learned]) -> Iterator[str]:
        """Yield sentences on how many of the rows were cut."""
        more = f"more than data.max-length = {self.max_length} tokens"
        if lost := sum(row.cut is Cut.TURNS for row in rows):
            yield f"{part}: {lost:,} of {len(rows):,} conversations lose their last turns: they have {more}"
        if lost := sum(row.cut is Cut.EXCHANGE for row in rows):
            yield (
                f"{part}: {lost:,} of {len(rows):,} conversations have {more} up to the end of their first answer: "
                "they keep the beginning of the answer, and the end of what comes before it"
            )

    # --------------------------------------------------------------------------------------------- rows
    def _rows(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64]) -> Iterator[Learned]:
        begin = tokenizer.bos_token_id
        with self.rendering(tokenizer) as spelled:
            for start in range(0, len(rows), CHUNK):
                some = rows[start : start + CHUNK]
                chats = conversations(raw, self.columns, some, self.merged)
                for row, (ids, ranges) in zip(some, spelled(raw, some, chats), strict=True):
                    found = fitted(ids, ranges, self.max_length, self.completion, begin)
                    if not found.learned.any():
                        raise self._unlearned(raw, int(row))
                    yield found

    @contextmanager
    def rendering(self, tokenizer: Any) -> Iterator[Spelled]:
        """Yield the function from conversations, those of some rows, to the token ids of each, of any length, and the
        ranges of them that are learned, at least one. Raises DataError, and so does the function."""
        text = template_of(self.template, tokenizer, self.base)
        if not text and tokenizer.eos_token is None:
            problem = "has no end token, which an answer ends with"
            raise DataError(f"the tokenizer in {self.base} {problem}", f"the tokenizer {problem}")
        with filled_in(text or PLAIN, tokenizer, self.base, self.day) as template:
            yield partial(self._spelled, template, not text, tokenizer)

    def _spelled(
        self,
        template: Template,
        leads: bool,
        tokenizer: Any,
        raw: Raw,
        rows: NDArray[np.int64],
        chats: Sequence[Conversation],
    ) -> Iterator[tuple[list[int], list[Range]]]:
        """Yield ids and ranges. `leads`: the tokenizer adds the tokens that begin a text."""
        rendered = self._rendered(template, raw, rows, chats)
        options = {"add_special_tokens": leads, "return_offsets_mapping": True, "verbose": False}
        tokens = encoded(tokenizer, [text for text, _ in rendered], **options)
        for number, (row, chat, (text, spans)) in enumerate(zip(rows, chats, rendered, strict=True)):
            if not template.has_tag:
                spans = [without_space(text, span, tokenizer.all_special_tokens) for span in spans]
            offsets = np.array(tokens["offset_mapping"][number], np.int64).reshape(-1, 2)
            ranges = [token_range(offsets, span) for span in self._learned(raw, int(row), chat, spans)]
            whole = [one for one in ranges if one is not None]
            if not whole:
                raise self._unlearned(raw, int(row))
            yield tokens["input_ids"][number], whole

    def _unlearned(self, raw: Raw, row: int) -> DataError:
        return raw.fault(row, self.columns[-1], "no token is the assistant's, by the chat template")

    def _rendered(
        self, template: Template, raw: Raw, rows: NDArray[np.int64], chats: Sequence[Conversation]
    ) -> list[tuple[str, list[Span]]]:
        """Return the text of every conversation, and what the assistant wrote in it."""
        try:
            return template.wholes([chat.turns for chat in chats])
        except Refused as error:
            row, chat = int(rows[error.chat]), chats[error.chat]
            place = chat.places[error.turn]
            if error.rewritten:
                problem = (
                    "the chat template writes this answer, or what is before it, differently in a longer conversation; "
                    "use a template with {% generation %}, such as data.template = 'chatml'"
                )
                raise turn_fault(raw, row, place, problem) from error
            system = chat.turns[error.turn]["role"] == SYSTEM
            cure = "set data.system-turn = 'merged'" if system else "leave the row out, or use another data.template"
            problem = f"the chat template does not take this {chat.turns[error.turn]['role']} turn; {cure}"
            raise turn_fault(raw, row, place, problem, f" ({error.reason})") from error

    def _learned(self, raw: Raw, row: int, chat: Conversation, spans: list[Span]) -> list[Span]:
        """Return the spans of the turns that are learned."""
        own = [learned for turn, learned in zip(chat.turns, chat.learned, strict=True) if turn["role"] == ASSISTANT]
        if all(own):
            return spans
        if len(own) != len(spans):
            problem = "some answers are given, and the chat template does not mark every answer once"
            raise raw.fault(row, self.columns[-1], problem, f": {len(spans)} spans, {len(own)} answers")
        return [span for span, learned in zip(spans, own, strict=True) if learned]


@dataclass(frozen=True)
class PairEncoder:
    """An encoder of prompts and completions: as they are if they are texts, as conversations if they are turns."""

    texts: CompletionEncoder
    chats: ChatEncoder

    def recipe(self) -> object:
        """Return everything but the rows that the tokens depend on."""
        return [self.texts.recipe(), self.chats.recipe()]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows, in the form of the first of them. Raises DataError."""
        column = self.chats.columns[0]
        first = next(raw.values(column, rows[:1]), None)
        if isinstance(first, list):
            return self.chats.write(folder, part, raw, rows)
        if self.texts.template not in ("auto", "plain"):
            problem = f"data.template is for turns, and column '{column}' has texts; leave data.template out"
            raise DataError(f"{raw.place}: {problem}", problem)
        return self.texts.write(folder, part, raw, rows)

    def read(self, folder: Path, part: str) -> LabelledTokens | Completions:
        """Return the rows that `write` prepared, mapped into memory."""
        turns = (folder / f"{part}-labels.npy").exists()
        return self.chats.read(folder, part) if turns else self.texts.read(folder, part)

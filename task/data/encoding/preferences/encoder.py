"""Preferences in tokens: a prompt with its chosen answer, and the same prompt with its rejected answer.

Rows have texts, a prompt and two answers as they are, or turns: a prompt and two answers, or two conversations with the
same beginning. Turns become tokens by the chat template, as in `task.data.encoding.chats`. An answer that is a text
ends with the tokenizer's end token. Both answers get the same prompt: if one of the two sequences is too long, the
prompt loses its beginning in both, because the loss compares answers to one question.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.chats.encoder import ChatEncoder
from task.data.encoding.chats.tokens import Range
from task.data.encoding.completions import dated
from task.data.encoding.preferences.conversations import conversation_pairs
from task.data.encoding.preferences.pairs import AnswerPairs
from task.data.encoding.prompts import bare_ids, ended, ending, prompt_ids
from task.data.encoding.texts import (
    CHUNK,
    check_ids,
    check_length,
    check_tokens,
    padding,
    read_texts,
    read_tokens,
    tokenizer_in,
    write_tokens,
)
from task.data.raw import DataError, Raw
from task.data.rows import IGNORED, LabelledTokens, mapped

EDITION = 1  # version of the stored format
Answer = tuple[Sequence[int], Sequence[bool]]  # token ids from the first learned one, and which of them are learned


@dataclass(frozen=True)
class PreferenceEncoder:
    """An encoder of rows as two sequences of at most `max_length` token ids each. If a row does not fit, its answers
    have at most `completion` tokens, unless the prompt needs fewer. `chats` are encoders of conversations with the
    chosen and the rejected answer; without a column of prompts both columns have whole conversations."""

    prompt: str
    chats: tuple[ChatEncoder, ChatEncoder]

    @classmethod
    def of(cls, base: Path, data: Data) -> "PreferenceEncoder":
        """Return the encoder of these settings."""
        own = ChatEncoder.of(base, replace(data, messages_column=data.chosen_column))
        before = (data.prompt_column,) if data.prompt_column else ()
        chosen, rejected = (
            replace(own, columns=(*before, column)) for column in (data.chosen_column, data.rejected_column)
        )
        return cls(data.prompt_column, (chosen, rejected))

    @property
    def own(self) -> ChatEncoder:
        """Return the encoder that has the settings of both."""
        return self.chats[0]

    @property
    def answers(self) -> tuple[str, str]:
        """Return the columns of chosen and of rejected answers."""
        return self.chats[0].columns[-1], self.chats[1].columns[-1]

    def recipe(self) -> object:
        """Return everything but the rows that the tokens depend on."""
        return [EDITION, self.prompt, *(chat.recipe() for chat in self.chats)]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows, in the form of the first of them; return notices on those that are cut, and on those that
        teach nothing. Raises DataError for the first row that is no preference."""
        own = self.own
        tokenizer = tokenizer_in(own.base)
        check_length(own.max_length, tokenizer, own.base)
        turns = isinstance(next(raw.values(self.answers[0], rows[:1]), None), list)
        sides: tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]] = ([], [])
        labels: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
        cut: Counter[str] = Counter()
        for prompts, answers in (self._turns if turns else self._texts)(tokenizer, raw, rows):
            before, kept = _fitted(prompts, answers, own.max_length, own.completion, tokenizer.bos_token_id, cut)
            for side, (prompt, (ids, learned)) in enumerate(zip(before, kept, strict=True)):
                sides[side].append(np.array([*prompt, *ids], np.int32))
                given = np.full(len(prompt), IGNORED, np.int64)
                labels[side].append(np.concatenate([given, np.where(learned, ids, IGNORED)]).astype(np.int64))
        pad = padding(tokenizer, own.base)
        sequences = [*sides[0], *sides[1]]
        check_ids(sequences, pad, own.base)
        write_tokens(folder, part, sequences, pad)
        np.save(folder / f"{part}-labels.npy", np.concatenate([np.empty(0, np.int64), *labels[0], *labels[1]]))
        day = dated(own.base, own.template, own.day) if turns and part == "train" else ()
        return (*self._said(part, len(rows), cut), *day)

    def read(self, folder: Path, part: str) -> AnswerPairs:
        """Return the rows that `write` prepared, mapped into memory."""
        return AnswerPairs(LabelledTokens(read_tokens(folder, part), mapped(folder / f"{part}-labels.npy")))

    def _said(self, part: str, rows: int, cut: Counter[str]) -> Iterator[str]:
        """Yield sentences on how many of `rows` rows were cut, or have the same answer twice."""
        more = f"more than data.max-length = {self.own.max_length} tokens"
        if lost := cut["answer"]:
            yield f"{part}: {lost:,} of {rows:,} preferences have {more}: a long answer loses its end"
        if lost := cut["prompt"]:
            yield f"{part}: {lost:,} of {rows:,} preferences have {more}: the prompt loses its beginning"
        if same := cut["same"]:
            yield f"{part}: {same:,} of {rows:,} preferences have the same answer twice, and teach nothing"

    # --------------------------------------------------------------------------------------------- rows
    def _texts(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64]) -> Iterator[tuple[Any, list[Answer]]]:
        """Yield the prompt of every row, twice, and its answers."""
        if not self.prompt:
            problem = "texts need a prompt: name data.prompt-column (only conversations may have it in themselves)"
            raise raw.fault(int(rows[0]), self.answers[0], problem)
        if self.own.template not in ("auto", "plain"):
            problem = f"data.template is for turns, and column '{self.answers[0]}' has texts; leave data.template out"
            raise DataError(f"{raw.place}: {problem}", problem)
        if tokenizer.eos_token_id is None:
            problem = "has no end token, which an answer ends with"
            raise DataError(f"the tokenizer in {self.own.base} {problem}", f"the tokenizer {problem}")
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            prompts = prompt_ids(tokenizer, read_texts(raw, self.prompt, some))
            check_tokens(prompts, raw, self.prompt, some)
            sides = [bare_ids(tokenizer, read_texts(raw, column, some)) for column in self.answers]
            for column, side in zip(self.answers, sides, strict=True):
                check_tokens(side, raw, column, some)
            for prompt, *both in zip(prompts, *sides, strict=True):
                whole = [ended(ids, tokenizer.eos_token_id) for ids in both]
                yield (prompt, prompt), [(ids, [True] * len(ids)) for ids in whole]

    def _turns(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64]) -> Iterator[tuple[Any, list[Answer]]]:
        """Yield what is before the answers of every row, and the answers. The former are the same, unless the template
        writes them differently."""
        if not tokenizer.is_fast:
            problem = "does not say which characters a token is made of, which conversations need"
            raise DataError(f"the tokenizer in {self.own.base} {problem}", f"the base's tokenizer {problem}")
        with self.own.rendering(tokenizer) as one, self.chats[1].rendering(tokenizer) as other:
            for start in range(0, len(rows), CHUNK):
                some = rows[start : start + CHUNK]
                pairs = conversation_pairs(raw, self.prompt, self.answers, some, self.own.merged)
                chosen, rejected = ([pair[side] for pair in pairs] for side in (0, 1))
                for both in zip(one(raw, some, chosen), other(raw, some, rejected), strict=True):
                    parts = [_parts(ids, ranges) for ids, ranges in both]
                    yield [prompt for prompt, _ in parts], [answer for _, answer in parts]


def _parts(ids: Sequence[int], ranges: Sequence[Range]) -> tuple[Sequence[int], Answer]:
    """Return what is before the first learned token, at least one token, and the rest up to the last learned one."""
    start, end = max(ranges[0][0], 1), ranges[-1][1]
    learned = np.zeros(end, bool)
    for first, last in ranges:
        learned[first:last] = True
    return ids[:start], (ids[start:end], learned[start:end].tolist())


def _fitted(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    most: int,
    share: int,
    begin: int | None,
    cut: Counter[str],
) -> tuple[list[Sequence[int]], list[Answer]]:
    """Return prompts and answers of at most `most` tokens together; `cut` counts rows that lose something. A leading
    token `begin` of a prompt is kept."""
    longest = max(map(len, prompts))
    room = max(share, most - longest)
    kept = [(ids[:room], learned[:room]) for ids, learned in answers]
    left = most - max(len(ids) for ids, _ in kept)
    cut["answer"] += any(len(ids) > room for ids, _ in answers)
    cut["prompt"] += longest > left
    cut["same"] += list(kept[0][0]) == list(kept[1][0])
    return [ending(prompt, left, begin) for prompt in prompts], kept

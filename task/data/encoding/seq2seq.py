"""Texts to read and texts to write: from prompts and completions to tokens for an encoder-decoder.

A text to read is a prompt as it is, or an instruction, an empty line and its input. It has the special tokens of the
tokenizer, and loses its end beyond `max_length`. A completion has those that the tokenizer gives to targets, and an end
token. Beyond its share it loses its end, with that token, so that the model does not learn to stop there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.completions import Columns, optional_texts
from task.data.encoding.prompts import ended
from task.data.encoding.texts import (
    CHUNK,
    check_ids,
    check_length,
    check_tokens,
    encoded,
    padding,
    read_texts,
    read_tokens,
    small_files,
    tokenized,
    tokenizer_in,
    write_tokens,
)
from task.data.raw import DataError, Raw
from task.data.rows import TextPairs

EDITION = 1  # version of the stored format
TARGETS = "-targets"  # ends the name of a part's texts to write


@dataclass(frozen=True)
class Seq2SeqEncoder:
    """An encoder of rows as at most `max_length` tokens to read and `completion` tokens to write, by the tokenizer in
    folder `base`."""

    base: Path
    columns: Columns
    max_length: int
    completion: int

    @classmethod
    def of(cls, base: Path, data: Data) -> "Seq2SeqEncoder":
        """Return the encoder of these settings."""
        return cls(base, Columns.of(data), data.max_length, data.max_completion_length or data.max_length // 2)

    def recipe(self) -> object:
        """Return everything but the rows that the tokens depend on."""
        columns = [self.columns.instruction, self.columns.input, self.columns.output]
        return [EDITION, columns, self.max_length, self.completion, small_files(self.base)]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices on how many are cut.

        Raises DataError for the first row without a text, for a tokenizer without an end token, and for a length that
        the model does not support.
        """
        tokenizer = tokenizer_in(self.base)
        check_length(self.max_length, tokenizer, self.base)
        pad, cut = padding(tokenizer, self.base), 0
        sources, targets = list[NDArray[np.int32]](), list[NDArray[np.int32]]()
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            sources += self.sources(tokenizer, raw, some)
            for whole in self._targets(tokenizer, raw, some):
                cut += len(whole) > self.completion
                targets.append(np.array(whole[: self.completion], np.int32))
        for name, ids in ((part, sources), (part + TARGETS, targets)):
            check_ids(ids, pad, self.base)
            write_tokens(folder, name, ids, pad)
        said = f"{part}: {cut:,} of {len(rows):,} completions lose their end and the end token: they have more than"
        return (f"{said} {self.completion} tokens (data.max-completion-length)",) if cut else ()

    def read(self, folder: Path, part: str) -> TextPairs:
        """Return the rows that `write` prepared, mapped into memory."""
        return TextPairs(read_tokens(folder, part), read_tokens(folder, part + TARGETS), self.completion)

    def sources(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Return the tokens to read of these rows. Raises DataError for the first row without a text."""
        tasks = read_texts(raw, self.columns.instruction, rows)
        about = optional_texts(raw, self.columns.input, rows)
        texts = [f"{task}\n\n{more}" if more else task for task, more in zip(tasks, about, strict=True)]
        found = tokenized(tokenizer, texts, truncation=True, max_length=self.max_length)
        check_tokens(found, raw, self.columns.instruction, rows)
        return [np.array(ids, np.int32) for ids in found]

    def _targets(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64]) -> list[list[int]]:
        """Return the tokens to write of these rows, of any length, each with an end token."""
        if tokenizer.eos_token_id is None:
            problem = "has no end token, which a completion ends with"
            raise DataError(f"the tokenizer in {self.base} {problem}", f"the tokenizer {problem}")
        texts = read_texts(raw, self.columns.output, rows)
        found: Sequence[Sequence[int]] = encoded(tokenizer, texts, text_target=texts, verbose=False)["labels"]
        return [ended(ids, tokenizer.eos_token_id) for ids in found]

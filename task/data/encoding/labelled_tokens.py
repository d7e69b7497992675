"""Rows of tokens with a label each: the part of the encoding that does not depend on the kind of label."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.texts import (
    NO_TOKENIZER,
    check_ids,
    check_length,
    padding,
    read_tokens,
    small_files,
    tokenizer_in,
    write_tokens,
)
from task.data.raw import DataError, Raw
from task.data.rows import IGNORED, LabelledTokens, mapped

Pieces = tuple[Sequence[int], Sequence[int]]  # token ids, and a label for each
EDITION = 1  # version of the stored format


@dataclass(frozen=True)
class LabelledTokenEncoder(ABC):
    """An encoder of rows as at most `max_length` token ids with a label each, by the tokenizer in folder `base`. A
    subclass defines `pieces`; its fields are part of the recipe."""

    base: Path
    max_length: int

    @abstractmethod
    def pieces(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64]) -> Iterator[Pieces]:
        """Yield the token ids of every row, of any length, and a label for each: a number from 0, or IGNORED. Raises
        DataError."""

    def recipe(self) -> object:
        """Return everything but the rows that the tokens depend on."""
        return [EDITION, type(self).__qualname__, *map(str, astuple(self)[1:]), small_files(self.base)]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices on how many are cut. Raises DataError."""
        tokenizer = tokenizer_in(self.base)
        check_length(self.max_length, tokenizer, self.base)
        ids, labels, cut = [], [np.empty(0, np.int64)], 0
        for row, (tokens, own) in zip(rows, self.pieces(tokenizer, raw, rows), strict=True):
            if all(label == IGNORED for label in own[: self.max_length]):
                raise DataError(f"{raw.where(int(row))}: no token has a label", "a row has no token with a label")
            ids.append(np.array(tokens[: self.max_length], np.int32))
            labels.append(np.array(own[: self.max_length], np.int64))
            cut += len(tokens) > self.max_length
        pad = padding(tokenizer, self.base)
        check_ids(ids, pad, self.base)
        write_tokens(folder, part, ids, pad)
        np.save(folder / f"{part}-labels.npy", np.concatenate(labels))
        said = f"{part}: {cut:,} of {len(ids):,} rows have more than data.max-length = {self.max_length} tokens"
        return (f"{said} and lose their end",) if cut else ()

    def read(self, folder: Path, part: str) -> LabelledTokens:
        """Return the rows that `write` prepared, mapped into memory."""
        return LabelledTokens(read_tokens(folder, part), mapped(folder / f"{part}-labels.npy"))


def word_pieces(tokenizer: Any, words: Sequence[str], labels: Sequence[int]) -> Pieces:
    """Return the token ids of words, and a label for each: the word's label for its first token, else IGNORED. Raises
    DataError for a tokenizer that does not map tokens to words."""
    try:
        found = tokenizer(list(words), is_split_into_words=True, truncation=False, verbose=False)
        owners = found.word_ids()
    except Exception as error:  # tokenizers without a compiled form raise here, and others raise errors of many types
        problem = "the base's tokenizer does not map tokens to words"
        raise DataError(f"{problem}: {error}", NO_TOKENIZER) from error
    first = [owner is not None and owner != before for before, owner in zip([None, *owners], owners)]
    return found["input_ids"], [labels[owner] if new else IGNORED for owner, new in zip(owners, first, strict=True)]

"""Texts: from strings to the token ids of the base's tokenizer."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.tokenizer_file import check_made
from task.data.encoding.vocabulary import check_usable, pads_left, takes_positions, unknown, unread
from task.data.raw import DataError, Raw
from task.data.rows import Tokens, mapped
from task.files.contents import CONFIG, INDEX, TOKENIZER, is_weights, listed, settings
from task.files.library_copy import shown

CHUNK = 1000  # texts tokenised at once
SHAPELESS = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories of control signs, marks of direction, spaces
MANY = 0.3  # share of unknown tokens that is reported
PANIC = "PanicException"  # raised by bugs of the compiled tokenizers; it is no Exception
EDITION = 2  # version of the stored format
NO_TOKENIZER = "the base has no tokenizer that can be read"


@dataclass(frozen=True)
class TextEncoder:
    """An encoder of the texts of `column` as at most `max_length` token ids, by the tokenizer in folder `base`."""

    base: Path
    column: str
    max_length: int

    def recipe(self) -> object:
        """Return everything but the rows that the token ids depend on."""
        return [EDITION, self.column, self.max_length, small_files(self.base)]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices on how many are cut.

        Raises DataError for the first value that is no text."""
        tokenizer = tokenizer_in(self.base)
        check_length(self.max_length, tokenizer, self.base)
        texts = read_texts(raw, self.column, rows)
        ids: list[NDArray[np.int32]] = []
        cut = 0
        for start in range(0, len(texts), CHUNK):
            part_of = texts[start : start + CHUNK]
            found = tokenized(tokenizer, part_of, truncation=True, max_length=self.max_length)
            ids += [np.array(row, np.int32) for row in found]
            cut += _longer(tokenizer, part_of, found, self.max_length)
        check_tokens(ids, raw, self.column, rows)
        pad = padding(tokenizer, self.base)
        check_ids(ids, pad, self.base)
        left = pads_left(tokenizer, self.base)
        write_tokens(folder, part, ids, pad, left, left and takes_positions(self.base))
        said = f"{part}: {cut:,} of {len(texts):,} texts have more than data.max-length = {self.max_length} tokens"
        return (*((f"{said} and lose their end",) if cut else ()), *_strange(part, unknown(ids, tokenizer)))

    def read(self, folder: Path, part: str) -> Tokens:
        """Return the rows that `write` prepared."""
        return read_tokens(folder, part)


def _strange(part: str, share: float) -> tuple[str, ...]:
    """Return a notice if many tokens are unknown. Raises DataError if all are: all texts would look the same."""
    if share == 1:
        problem = "the base's tokenizer knows none of the words of these texts"
        raise DataError(f"{part}: {problem}; use a base for their language and letters", problem)
    return (f"{part}: {share:.0%} of the tokens are unknown to the base's tokenizer",) if share > MANY else ()


def _longer(tokenizer: Any, texts: Sequence[str], found: Sequence[Sequence[int]], most: int) -> int:
    """Return how many of these texts have more than `most` tokens; `found` are the tokens that were kept."""
    full = [text for text, ids in zip(texts, found, strict=True) if len(ids) >= most]
    return sum(len(ids) > most for ids in tokenized(tokenizer, full, truncation=False, verbose=False)) if full else 0


def read_texts(raw: Raw, column: str, rows: NDArray[np.int64]) -> list[str]:
    """Return the texts of these rows. Raises DataError for the first value that is empty or no text."""
    texts: list[str] = []
    for row, value in zip(rows, raw.values(column, rows), strict=True):
        if blank(value):
            raise raw.fault(int(row), column, "the text is empty")
        if not isinstance(value, str):
            raise raw.fault(int(row), column, "no text", f", but {value!r:.60}")
        texts.append(value)
    return texts


def blank(value: object) -> bool:
    """Return whether a value is a text without visible characters: missing, spaces, or control signs."""
    if value is None:
        return True
    return isinstance(value, str) and all(char.isspace() or unicodedata.category(char) in SHAPELESS for char in value)


def check_tokens(ids: Sequence[Sequence[int] | NDArray[np.int32]], raw: Raw, column: str, rows: Any) -> None:
    """Raise DataError for the first text without tokens; `ids` are the token ids of `rows`."""
    for row, tokens in zip(rows, ids, strict=True):
        if not len(tokens):
            raise raw.fault(int(row), column, "the text has no tokens")


def write_tokens(
    folder: Path,
    part: str,
    ids: Sequence[NDArray[np.int32]],
    pad: int,
    left: bool = False,
    positions: bool = False,
) -> None:
    """Write rows of token ids (each int32) one after another, with their offsets and the padding of short rows."""
    lengths = np.array([len(row) for row in ids], np.int64)
    np.save(folder / f"{part}-ids.npy", np.concatenate([np.empty(0, np.int32), *ids]))
    np.save(folder / f"{part}-offsets.npy", np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
    (folder / "tokens.json").write_text(json.dumps({"pad": pad, "left": left, "positions": positions}))


def read_tokens(folder: Path, part: str) -> Tokens:
    """Return the rows that `write_tokens` wrote, mapped into memory."""
    filling = json.loads((folder / "tokens.json").read_text())
    return Tokens(mapped(folder / f"{part}-ids.npy"), mapped(folder / f"{part}-offsets.npy"), **filling)


def small_files(base: Path) -> dict[str, str]:
    """Return a hash of every file of the base that can affect its tokens, by name. Raises BaseError."""
    files = {name: path for name, path in listed(base).items() if name != INDEX and not is_weights(name)}
    return {name: hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest() for name, path in files.items()}


def tokenizer_in(base: Path) -> Any:
    """Return the tokenizer in folder `base`. Raises DataError if there is none, BaseError if it may not be read."""
    from transformers import AutoTokenizer

    with shown(base) as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != PANIC:
                raise
            raise DataError(f"{base}: {unread(base, error)}", NO_TOKENIZER) from error
    check_usable(tokenizer, base)
    if not (base / TOKENIZER).exists():
        check_made(tokenizer, base)
    return tokenizer


def tokenized(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """Return the token ids of every text. Raises DataError if the tokenizer fails."""
    found: list[list[int]] = encoded(tokenizer, texts, **options)["input_ids"]
    return found


def encoded(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    """Return what the tokenizer makes of texts. Raises DataError if it fails."""
    try:
        return tokenizer(list(texts), **options)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise DataError(f"the base's tokenizer does not read texts: {error}", NO_TOKENIZER) from error


def check_length(max_length: int, tokenizer: Any, base: Path) -> None:
    """Raise DataError if `data.max-length` is more than the tokenizer or the model supports."""
    limit = longest(tokenizer, base)
    if max_length > limit:
        problem = f"data.max-length = {max_length} is more than the {limit} tokens that"
        raise DataError(f"{problem} {base} takes", f"{problem} the base takes")


def longest(tokenizer: Any, base: Path) -> float:
    """Return how many tokens the tokenizer and the model support. Raises DataError if the tokenizer gives no number."""
    model_limit = tokenizer.model_max_length
    if not isinstance(model_limit, int | float):
        raise DataError(
            f"the tokenizer in {base} has model_max_length = {model_limit!r:.80}, which is not a number", NO_TOKENIZER
        )
    return min(model_limit, _stated(base, "max_position_embeddings", "n_positions"))


def check_ids(ids: Sequence[NDArray[np.int32]], pad: int, base: Path) -> None:
    """Raise DataError if the tokenizer has tokens without an embedding in the model in folder `base`."""
    largest = max((int(row.max()) for row in ids if len(row)), default=0)
    if max(largest, pad) >= _stated(base, "vocab_size"):
        problem = "the tokenizer has tokens that the model does not know (vocab_size)"
        raise DataError(f"{base}: {problem}", f"the base: {problem}")


def padding(tokenizer: Any, base: Path) -> int:
    """Return the id that pads short rows. It is masked, so the end-of-text id is used if there is no padding id."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    problem = "has neither a padding nor an end token"
    raise DataError(f"the tokenizer in {base} {problem}", f"the tokenizer {problem}")


def _stated(base: Path, *keys: str) -> int:
    """Return the first of these whole numbers in the model's settings, else a very large number."""
    found = settings(base / CONFIG) if (base / CONFIG).exists() else {}
    return next((found[key] for key in keys if isinstance(found.get(key), int) and found[key] > 0), 1 << 30)

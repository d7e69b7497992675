"""Texts: from strings to the token ids of the base's tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.raw import DataError, Raw
from task.rows import Tokens, mapped

CHUNK = 1000  # texts that are tokenised at once


@dataclass(frozen=True)
class TextEncoder:
    """How the texts of `column` become at most `max_length` token ids: by the tokenizer in folder `base`."""

    base: Path
    column: str
    max_length: int

    def recipe(self) -> object:
        """All that the token ids depend on, beside the rows."""
        return [self.column, self.max_length, small_files(self.base)]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> None:
        """Prepare these rows. Raises DataError for the first one that is no text."""
        tokenizer = tokenizer_in(self.base)
        check_length(self.max_length, tokenizer, self.base)
        texts = read_texts(raw, self.column, rows)
        ids: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), CHUNK):
            encoded = tokenizer(texts[start : start + CHUNK], truncation=True, max_length=self.max_length)
            ids += [np.array(row, np.int32) for row in encoded["input_ids"]]
        check_tokens(ids, raw, self.column, rows)
        write_tokens(folder, part, ids, padding(tokenizer, self.base))

    def read(self, folder: Path, part: str) -> Tokens:
        """What `write` prepared."""
        return read_tokens(folder, part)


def read_texts(raw: Raw, column: str, rows: NDArray[np.int64]) -> list[str]:
    """The texts of these rows. Raises DataError for the first one that is empty or no text."""
    texts: list[str] = []
    for row, value in zip(rows, raw.values(column, rows), strict=True):
        if isinstance(value, str) and value.strip():
            texts.append(value)
            continue
        if value is None or isinstance(value, str):
            raise DataError.at(raw.place, int(row), column, "the text is empty")
        raise DataError.at(raw.place, int(row), column, "no text", f", but {value!r:.60}")
    return texts


def check_tokens(ids: Sequence[Sequence[int] | NDArray[np.int32]], raw: Raw, column: str, rows: Any) -> None:
    """DataError for the first text that the tokenizer finds nothing in; `ids` are those of `rows`."""
    for row, tokens in zip(rows, ids, strict=True):
        if not len(tokens):
            raise DataError.at(raw.place, int(row), column, "the text has no tokens")


def write_tokens(folder: Path, part: str, ids: Sequence[NDArray[np.int32]], pad: int) -> None:
    """Keep rows of token ids (each int32) one after another, with the places where they begin."""
    lengths = np.array([len(row) for row in ids], np.int64)
    np.save(folder / f"{part}-ids.npy", np.concatenate([np.empty(0, np.int32), *ids]))
    np.save(folder / f"{part}-offsets.npy", np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
    (folder / "tokens.json").write_text(json.dumps({"pad": pad}))


def read_tokens(folder: Path, part: str) -> Tokens:
    """What `write_tokens` kept, mapped into memory."""
    pad = json.loads((folder / "tokens.json").read_text())["pad"]
    return Tokens(mapped(folder / f"{part}-ids.npy"), mapped(folder / f"{part}-offsets.npy"), pad)


def small_files(base: Path) -> dict[str, str]:
    """Every file of the base that can shape its tokens, by name: a hash of its content."""
    files = [path for path in sorted(base.iterdir()) if path.suffix in (".json", ".txt", ".model", ".jinja")]
    return {path.name: hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest() for path in files}


def tokenizer_in(base: Path) -> Any:
    """The tokenizer in folder `base`. Raises DataError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        public = "the base has no tokenizer that can be read"
        raise DataError(f"{base} has no tokenizer that can be read: {error}", public) from error


def check_length(max_length: int, tokenizer: Any, base: Path) -> None:
    """DataError where `data.max-length` is more than tokenizer and model take."""
    limit = min(tokenizer.model_max_length, _positions(base))
    if max_length > limit:
        problem = f"data.max-length = {max_length} is more than the {limit} tokens that"
        raise DataError(f"{problem} {base} takes", f"{problem} the base takes")


def pad_id(base: Path) -> int:
    """The id that fills short rows, by the tokenizer in folder `base`."""
    return padding(tokenizer_in(base), base)


def padding(tokenizer: Any, base: Path) -> int:
    """The id that fills short rows; it is masked, so a tokenizer without one lends its end-of-text."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    problem = "has neither a padding nor an end token"
    raise DataError(f"the tokenizer in {base} {problem}", f"the tokenizer {problem}")


def _positions(base: Path) -> int:
    """How many tokens the model can tell apart by place."""
    path = base / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 30)

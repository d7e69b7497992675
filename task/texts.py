"""Texts: from strings to the token ids of the base's tokenizer."""

import hashlib
import json
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
        """All that the token ids depend on, beside the rows: every small file of the base, by content."""
        files = [path for path in sorted(self.base.iterdir()) if path.suffix in (".json", ".txt", ".model")]
        contents = {path.name: hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest() for path in files}
        return [self.column, self.max_length, contents]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> None:
        """Prepare these rows. Raises DataError for the first one that is no text."""
        tokenizer = _tokenizer(self.base)
        self._check_length(tokenizer)
        texts = self._texts(raw, rows)
        ids: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), CHUNK):
            encoded = tokenizer(texts[start : start + CHUNK], truncation=True, max_length=self.max_length)
            ids += [np.array(row, np.int32) for row in encoded["input_ids"]]
        lengths = np.array([len(row) for row in ids], np.int64)
        if not lengths.all():
            raise DataError.at(raw.place, int(rows[lengths.argmin()]), self.column, "the text has no tokens")
        np.save(folder / f"{part}-ids.npy", np.concatenate([np.empty(0, np.int32), *ids]))
        np.save(folder / f"{part}-offsets.npy", np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
        (folder / "tokens.json").write_text(json.dumps({"pad": _padding(tokenizer, self.base)}))

    def read(self, folder: Path, part: str) -> Tokens:
        """What `write` prepared."""
        pad = json.loads((folder / "tokens.json").read_text())["pad"]
        return Tokens(mapped(folder / f"{part}-ids.npy"), mapped(folder / f"{part}-offsets.npy"), pad)

    def _texts(self, raw: Raw, rows: NDArray[np.int64]) -> list[str]:
        texts: list[str] = []
        for row, value in zip(rows, raw.values(self.column, rows), strict=True):
            if isinstance(value, str) and value.strip():
                texts.append(value)
                continue
            missing = value is None or isinstance(value, str)
            problem = "the text is empty" if missing else f"no text, but {value!r:.60}"
            raise DataError.at(raw.place, int(row), self.column, problem)
        return texts

    def _check_length(self, tokenizer: Any) -> None:
        limit = min(tokenizer.model_max_length, _positions(self.base))
        if self.max_length > limit:
            raise DataError(
                f"data.max-length = {self.max_length} is more than the {limit} tokens that {self.base} takes"
            )


def _tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{base} has no tokenizer that can be read: {error}") from error


def pad_id(base: Path) -> int:
    """The id that fills short rows, by the tokenizer in folder `base`."""
    return _padding(_tokenizer(base), base)


def _positions(base: Path) -> int:
    """How many tokens the model can tell apart by place."""
    path = base / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 30)


def _padding(tokenizer: Any, base: Path) -> int:
    """The id that fills short rows; it is masked, so a tokenizer without one lends its end-of-text."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise DataError(f"the tokenizer in {base} has neither a padding nor an end token")

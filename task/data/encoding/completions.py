"""Instruction data: from rows of instruction, input and output to prompts and completions in tokens.

A completion is the output and the tokenizer's end token. A completion above its share of `max_length` loses its end,
including the end token, so that the model does not learn to stop there. A prompt that does not fit with its completion
loses its beginning, except for the token that starts every text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.prompts import Prompts, bare_ids, chats, prompt_ids, prompts_of
from task.data.encoding.texts import (
    CHUNK,
    check_ids,
    check_length,
    check_tokens,
    padding,
    read_texts,
    read_tokens,
    small_files,
    tokenizer_in,
    write_tokens,
)
from task.data.raw import DataError, Raw
from task.data.rows import Completions, mapped
from task.files.contents import listed

TEMPLATED = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json", "processor_config.json")
Pair = tuple[Sequence[int], Sequence[int]]  # a prompt and its completion


@dataclass(frozen=True)
class Columns:
    """The columns of a row's parts. Without `instruction` there are no prompts, and the whole output is learned."""

    instruction: str
    input: str
    output: str

    @classmethod
    def of(cls, data: Data) -> "Columns":
        """Return the columns that the settings name."""
        return cls(data.instruction_column, data.input_column, data.output_column)

    def keys(self) -> dict[str, str]:
        """Return the columns to read, each with the key that names it. Inputs are read only with instructions."""
        prompt = {self.instruction: "data.instruction-column", self.input: "data.input-column"}
        asked = prompt if self.instruction else {}
        return {column: key for column, key in {**asked, self.output: "data.output-column"}.items() if column}

    @property
    def required(self) -> list[str]:
        """Return the columns that data must have. The input column is required only if the user has named it."""
        if not self.instruction:
            return [self.output]
        named = [self.input] if self.input not in ("", Data.input_column) else []
        return [self.instruction, *named, self.output]


@dataclass(frozen=True)
class CompletionEncoder:
    """An encoder of rows as at most `max_length` token ids, by the tokenizer in folder `base`; at most `completion` of
    them belong to the completion."""

    base: Path
    columns: Columns
    template: str
    max_length: int
    completion: int
    day: str = ""  # the date for chat templates

    @classmethod
    def of(cls, base: Path, data: Data) -> "CompletionEncoder":
        """Return the encoder of these settings."""
        share = data.max_completion_length or data.max_length // 2
        return cls(base, Columns.of(data), data.template, data.max_length, share, data.date or date.today().isoformat())

    def recipe(self) -> object:
        """Return everything but the rows that the token ids depend on."""
        columns = [self.columns.instruction, self.columns.input, self.columns.output]
        day = self.day if _tells_date(self.base) else ""  # otherwise all rows would be made again every day
        return [columns, self.template, self.max_length, self.completion, small_files(self.base), day]

    def source_of_prompts(self) -> str:
        """Return the source of the prompts, in words. Raises DataError as `write` does."""
        if not self.columns.instruction:
            return "no prompts: outputs are learned whole"
        own = chats(self.template, tokenizer_in(self.base), self.base)
        return "prompts by the tokenizer's chat template" if own else "prompts by the plain template"

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices on how many are cut.

        Raises DataError for the first row without a text, for a tokenizer without an end token or a required chat
        template, and for a length that the model does not support."""
        tokenizer = tokenizer_in(self.base)
        check_length(self.max_length, tokenizer, self.base)
        if tokenizer.eos_token_id is None:
            problem = "has no end token, which a completion ends with"
            raise DataError(f"the tokenizer in {self.base} {problem}", f"the tokenizer {problem}")
        ids, prompts = [], []
        cut: Counter[str] = Counter()
        for prompt, completion in self._all(tokenizer, raw, rows, cut):
            ids.append(np.array([*prompt, *completion], np.int32))
            prompts.append(len(prompt))
        pad = padding(tokenizer, self.base)
        check_ids(ids, pad, self.base)
        write_tokens(folder, part, ids, pad)
        np.save(folder / f"{part}-prompts.npy", np.array(prompts, np.int64))
        dated = part == "train" and self.columns.instruction and self.template != "plain" and _tells_date(self.base)
        day = (f"the chat template states the date: {self.day} for the whole run (data.date)",) if dated else ()
        return (*self._said(part, len(ids), cut), *day)

    def read(self, folder: Path, part: str) -> Completions:
        """Return the rows that `write` prepared."""
        return Completions(read_tokens(folder, part), mapped(folder / f"{part}-prompts.npy"))

    def _said(self, part: str, rows: int, cut: Counter[str]) -> Iterator[str]:
        """Yield sentences on how many of `rows` rows were cut."""
        whole = not self.columns.instruction
        if lost := cut["completion"]:
            key = "max-length" if whole else "max-completion-length"
            most = self.max_length if whole else self.completion
            what = "texts" if whole else "completions"
            yield (
                f"{part}: {lost:,} of {rows:,} {what} lose their end and the end token, so the model does not learn to "
                f"stop there: they have more than {most} tokens (data.{key})"
            )
        if lost := cut["prompt"]:
            yield (
                f"{part}: {lost:,} of {rows:,} prompts lose their beginning: with their completions they have more "
                f"than data.max-length = {self.max_length} tokens"
            )

    def _all(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64], cut: Counter[str]) -> Iterator[Pair]:
        """Yield prompts and completions of at most their lengths; `cut` counts those that lose tokens."""
        parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        if not self.columns.instruction:
            for part in parts:
                yield from self._wholes(tokenizer, raw, part, cut)
            return
        with prompts_of(self.template, tokenizer, self.base, self.day) as ask:
            for part in parts:
                yield from self._pairs(ask, tokenizer, raw, part, cut)

    def _pairs(
        self, ask: Prompts, tokenizer: Any, raw: Raw, rows: NDArray[np.int64], cut: Counter[str]
    ) -> Iterator[Pair]:
        prompts = ask(read_texts(raw, self.columns.instruction, rows), self._inputs(raw, rows))
        outputs = bare_ids(tokenizer, read_texts(raw, self.columns.output, rows))
        check_tokens(prompts, raw, self.columns.instruction, rows)
        check_tokens(outputs, raw, self.columns.output, rows)
        for prompt, output in zip(prompts, outputs, strict=True):
            completion = [*output, tokenizer.eos_token_id][: self.completion]
            room = self.max_length - len(completion)
            cut["completion"] += len(output) >= self.completion
            cut["prompt"] += len(prompt) > room
            yield _ending(prompt, room, tokenizer.bos_token_id), completion

    def _wholes(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64], cut: Counter[str]) -> Iterator[Pair]:
        """Yield outputs as whole texts: the first token is given, all others are learned. Long outputs lose their
        end."""
        outputs = prompt_ids(tokenizer, read_texts(raw, self.columns.output, rows))
        check_tokens(outputs, raw, self.columns.output, rows)
        for output in outputs:
            whole = [*output, tokenizer.eos_token_id][: self.max_length]
            cut["completion"] += len(output) >= self.max_length
            yield whole[:1], whole[1:]

    def _inputs(self, raw: Raw, rows: NDArray[np.int64]) -> list[str]:
        """Return the inputs of these rows, empty if absent. Raises DataError for an input that is no text."""
        column = self.columns.input
        if not column or not raw.has(column):
            return [""] * len(rows)
        inputs: list[str] = []
        for row, value in zip(rows, raw.values(column, rows), strict=True):
            if value is not None and not isinstance(value, str):
                raise raw.fault(int(row), column, "no text", f", but {value!r:.60}")
            inputs.append(value if value and value.strip() else "")
        return inputs


def _tells_date(base: Path) -> bool:
    """Return whether a chat template of the base uses the date."""
    files = listed(base)
    return any(b"strftime_now" in files[name].read_bytes() for name in TEMPLATED if name in files)


def _ending(ids: Sequence[int], room: int, begin: int | None) -> Sequence[int]:
    """Return the last `room` ids (at least one); a leading `begin` is kept if there is room for more than that."""
    if len(ids) <= room:
        return ids
    lead = [ids[0]] if ids[0] == begin and room > 1 else []
    return [*lead, *ids[len(ids) - room + len(lead) :]]

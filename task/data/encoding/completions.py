"""Instructions, and prompts as they are: from rows of instruction, input and output, or of prompt and completion, to
prompts and completions in tokens.

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
from task.data.encoding.chats.named import NAMED
from task.data.encoding.chats.templates import template_of
from task.data.encoding.prompts import Prompts, bare_ids, ended, ending, prompt_ids, prompts_of
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
STATES = "strftime_now"  # the function of templates that gives the date
EDITION = 2  # version of the stored format
Pair = tuple[Sequence[int], Sequence[int]]  # a prompt and its completion


@dataclass(frozen=True)
class Columns:
    """The columns of a row's parts. Without `instruction` there are no prompts, and the whole output is learned.
    `verbatim`: what is in `instruction` is the prompt as it is; there are no inputs then."""

    instruction: str
    input: str
    output: str
    verbatim: bool = False

    @classmethod
    def of(cls, data: Data) -> "Columns":
        """Return the columns that the settings name."""
        if data.prompt_column:
            return cls(data.prompt_column, "", data.completion_column, verbatim=True)
        return cls(data.instruction_column, data.input_column, data.output_column)

    def keys(self) -> dict[str, str]:
        """Return the columns to read, each with the key that names it. Inputs are read only with instructions."""
        if self.verbatim:
            return {self.instruction: "data.prompt-column", self.output: "data.completion-column"}
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
        columns, share = Columns.of(data), data.max_completion_length or data.max_length // 2
        return cls(base, columns, data.template, data.max_length, share, data.date or date.today().isoformat())

    def recipe(self) -> object:
        """Return everything but the rows that the token ids depend on."""
        columns = [self.columns.instruction, self.columns.input, self.columns.output, self.columns.verbatim]
        day = self.day if tells_date(self.base, self.template) else ""  # else all rows would be made again every day
        return [EDITION, columns, self.template, self.max_length, self.completion, small_files(self.base), day]

    def source_of_prompts(self) -> str:
        """Return the source of the prompts, in words. Raises DataError as `write` does."""
        if not self.columns.instruction:
            return "no prompts: outputs are learned whole"
        if self.columns.verbatim:
            return "prompts as they are"
        return f"prompts by {called(self.template, tokenizer_in(self.base), self.base)}"

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
        prompted = self.columns.instruction and not self.columns.verbatim
        day = dated(self.base, self.template, self.day) if prompted and part == "train" else ()
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
        if self.columns.verbatim:
            for part in parts:
                yield from self._pairs(lambda asked, _: prompt_ids(tokenizer, asked), tokenizer, raw, part, cut)
            return
        template = template_of(self.template, tokenizer, self.base)
        with prompts_of(template, tokenizer, self.base, self.day) as ask:
            for part in parts:
                yield from self._pairs(ask, tokenizer, raw, part, cut)

    def _pairs(
        self, ask: Prompts, tokenizer: Any, raw: Raw, rows: NDArray[np.int64], cut: Counter[str]
    ) -> Iterator[Pair]:
        prompts = ask(read_texts(raw, self.columns.instruction, rows), optional_texts(raw, self.columns.input, rows))
        outputs = bare_ids(tokenizer, read_texts(raw, self.columns.output, rows))
        check_tokens(prompts, raw, self.columns.instruction, rows)
        check_tokens(outputs, raw, self.columns.output, rows)
        for prompt, output in zip(prompts, outputs, strict=True):
            whole = ended(output, tokenizer.eos_token_id)
            completion = whole[: self.completion]
            room = self.max_length - len(completion)
            cut["completion"] += len(whole) > self.completion
            cut["prompt"] += len(prompt) > room
            yield ending(prompt, room, tokenizer.bos_token_id), completion

    def _wholes(self, tokenizer: Any, raw: Raw, rows: NDArray[np.int64], cut: Counter[str]) -> Iterator[Pair]:
        """Yield outputs as whole texts: the first token is given, all others are learned. Long outputs lose their
        end."""
        outputs = prompt_ids(tokenizer, read_texts(raw, self.columns.output, rows))
        check_tokens(outputs, raw, self.columns.output, rows)
        for output in outputs:
            whole = ended(output, tokenizer.eos_token_id)
            cut["completion"] += len(whole) > self.max_length
            yield whole[:1], whole[1 : self.max_length]


def incomplete(data: Data) -> Iterator[str]:
    """Yield the conflicts between the columns that make a row."""
    if bool(data.prompt_column) != bool(data.completion_column):
        there, lacking = ("prompt", "completion") if data.prompt_column else ("completion", "prompt")
        yield f"data.{there}-column = '{getattr(data, f'{there}_column')}' needs data.{lacking}-column beside it"
    if data.messages_column and (data.prompt_column or data.completion_column):
        yield (
            f"data.messages-column = '{data.messages_column}' has whole conversations: leave out data.prompt-column "
            "and data.completion-column"
        )


def optional_texts(raw: Raw, column: str, rows: NDArray[np.int64]) -> list[str]:
    """Return the texts of a column that rows may lack, empty where they do. Raises DataError for another value."""
    if not column or not raw.has(column):
        return [""] * len(rows)
    found: list[str] = []
    for row, value in zip(rows, raw.values(column, rows), strict=True):
        if value is not None and not isinstance(value, str):
            raise raw.fault(int(row), column, "no text", f", but {value!r:.60}")
        found.append(value if value and value.strip() else "")
    return found


def called(template: str, tokenizer: Any, place: object) -> str:
    """Return what `data.template` means, in words. Raises DataError as `template_of` does."""
    if not template_of(template, tokenizer, place):
        return "the plain template"
    if template in ("auto", "chat"):
        return "the tokenizer's chat template"
    return f"the template '{template}'" if template in NAMED else "a template of your own"


def dated(base: Path, template: str, day: str) -> tuple[str, ...]:
    """Return a notice of the date if the template states it."""
    said = f"the chat template states the date: {day} for the whole run (data.date)"
    return (said,) if template != "plain" and tells_date(base, template) else ()


def tells_date(base: Path, template: str) -> bool:
    """Return whether the text of a template, or a chat template of the base, uses the date."""
    files = listed(base)
    return STATES in template or any(STATES.encode() in files[name].read_bytes() for name in TEMPLATED if name in files)

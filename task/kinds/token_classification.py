"""Token classification: words, each with a label, such as named entities or parts of speech."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.labelled_tokens import LabelledTokenEncoder, Pieces, word_pieces
from task.data.guessing.columns import Holds
from task.data.guessing.guess import TEXT, Guess, Sight, Sure, by_values
from task.data.labels import Labels, label_codes
from task.data.raw import Raw
from task.data.rows import Rows
from task.data.sources.base import Source
from task.data.tables.lists import items_of, lists_of, without_words
from task.kinds.base import Encoder, Kind, Positions, encoded, labels_in
from task.metrics import ACCURACY, LOSS, Metric

if TYPE_CHECKING:
    from torch import nn

    from task.prediction.answer import Prediction

WORD_LISTS = ("tokens", "words")  # names of columns of words


@dataclass(frozen=True)
class TokenClassification(Kind):
    """A row is a list of words (`data.text-column`) and a label for each (`data.label-column`). The first token of a
    word learns its label. `f1` counts whole entities: labels are B-PER, I-PER, O and the like."""

    auto_class = "AutoModelForTokenClassification"
    peft_auto_class = "AutoPeftModelForTokenClassification"
    peft_task_type = "TOKEN_CLS"
    pipeline = "token-classification"
    input_noun = "a list of words"
    row_labels = False
    per_token = True
    problem_type = ""
    metrics: ClassVar[Mapping[str, Metric]] = {"f1": Metric("entity F1"), "accuracy": ACCURACY, "loss": LOSS}
    chosen_by = "f1"

    def columns(self, data: Data) -> dict[str, str]:
        """Return the column of words."""
        return {data.text_column: "data.text-column"}

    def recognise(self, sight: Sight) -> Guess | None:
        """Return the columns of lists of words, which are called so, and of lists of labels."""
        lists = [one for one in sight.columns if one.holds is Holds.LIST and one.called(WORD_LISTS)]
        words = sight.named(TEXT, Holds.LIST) or next(iter(lists), None)
        return by_values(sight, words, Holds.LIST, Sure.NAMES)

    def missing(self, raw: Raw, column: str) -> NDArray[np.bool_]:
        """Return which rows (N,) have no word."""
        return without_words(raw, column)

    def labels_of(self, raw: Raw, column: str, given: Sequence[str], rows: Positions, *more: Any) -> Labels:
        """Return the labels of words; a row has none of its own."""
        tags = items_of(raw, column, rows)
        return replace(super().labels_of(tags, column, given, np.arange(len(tags)), *more), codes=None)

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder of words and their labels."""
        return WordEncoder(base, data.max_length, data.text_column, data.label_column, labels)

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a word of the first label, and many of the last."""
        words = ["a"] * data.max_length
        return {data.text_column: [["a"], words], data.label_column: [[data.labels[0]], [data.labels[-1]] * len(words)]}

    def evaluate(self, module: "nn.Module", rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
        """Return the F1 of entities, the share of words with the right label, and the mean cross-entropy of a word."""
        from task.prediction.entities import f1
        from task.training.token_predictions import token_predictions

        found = token_predictions(module, rows, device, at_once)
        return {"f1": f1(found.true, found.said), "accuracy": found.accuracy, "loss": found.loss}

    def question(self, data: Data, value: str) -> dict[str, object]:
        """Return the words of a text, which spaces separate."""
        return {data.text_column: value.split()}

    def predict(
        self, module: "nn.Module", base: Path, data: Data, raw: Raw, rows: Positions, device: str
    ) -> "Iterator[Prediction]":
        """Yield the labels of each row's words, in their order, with spaces between them."""
        from task.prediction.words import labels_of_words

        counts = [len(words) for words in lists_of(raw, data.text_column, rows)]
        with encoded(WordEncoder(base, data.max_length, data.text_column), raw, rows) as inputs:
            yield from labels_of_words(module, inputs, counts, labels_in(module), device)

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return an F1 of 0: few words begin an entity."""
        return {"f1": 0.0}


@dataclass(frozen=True)
class WordEncoder(LabelledTokenEncoder):
    """An encoder of words with their labels; without a column `tags`, with their numbers in the row."""

    words: str
    tags: str = ""
    labels: tuple[str, ...] = ()

    def pieces(self, tokenizer: Any, raw: Raw, rows: Positions) -> Iterator[Pieces]:
        """Yield the tokens of every row's words. Raises DataError for a row with more or fewer labels than words."""
        every = lists_of(raw, self.words, rows)
        for row, words, codes in zip(rows, every, self._codes(raw, rows) if self.tags else every, strict=True):
            own = codes if self.tags else range(len(words))
            if len(words) != len(own):
                raise raw.fault(int(row), self.tags, "not as many labels as words", f": {len(own)} and {len(words)}")
            yield word_pieces(tokenizer, words, own)

    def _codes(self, raw: Raw, rows: Positions) -> Iterator[list[int]]:
        """Yield the labels of every row. Numbers were found to be positions, if they are, in all rows of the split."""
        tags = items_of(raw, self.tags, rows)
        codes = iter(label_codes(tags, self.tags, self.labels, np.arange(len(tags)), by_position=True).codes.tolist())
        for own in lists_of(raw, self.tags, rows):
            yield [next(codes) for _ in own]

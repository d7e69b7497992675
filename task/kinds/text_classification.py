"""Text classification: texts with one label each."""

from dataclasses import dataclass
from pathlib import Path

from task.config import Data
from task.data.encoding.texts import TextEncoder
from task.data.guessing.guess import TEXT, Guess, Sight, by_label
from task.data.sources.base import Source
from task.kinds.base import Encoder, Kind


@dataclass(frozen=True)
class TextClassification(Kind):
    """Text classification. The base's tokenizer encodes the texts; the head has one output per label."""

    auto_class = "AutoModelForSequenceClassification"
    peft_auto_class = "AutoPeftModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    pipeline = "text-classification"

    def columns(self, data: Data) -> dict[str, str]:
        """Return the column of texts."""
        return {data.text_column: "data.text-column"}

    def recognise(self, sight: Sight) -> Guess | None:
        """Return a column of texts, and one of few different values."""
        return by_label(Sight.text, TEXT, sight)

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder that keeps the first data.max-length tokens of a text."""
        return TextEncoder(base, data.text_column, data.max_length)

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a short text of the first label and a long one of the last."""
        return {data.text_column: ["a", "a " * data.max_length], data.label_column: [data.labels[0], data.labels[-1]]}

"""Multi-label classification: texts with any number of labels each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.targets import TargetEncoder
from task.data.encoding.texts import TextEncoder
from task.data.guessing.columns import Holds
from task.data.guessing.guess import Guess, Sight, by_values
from task.data.labels import SEPARATOR, Labels, label_codes
from task.data.raw import Raw
from task.data.rows import Rows, Targets
from task.data.sources.base import Source
from task.data.tables.lists import check_separator, label_items
from task.kinds.base import Encoder, Kind, Positions, encoded, labels_in
from task.metrics import LOSS, Metric

if TYPE_CHECKING:
    from torch import nn

    from task.prediction.answer import Prediction


@dataclass(frozen=True)
class MultiLabel(Kind):
    """Multi-label classification of texts. `data.label-column` has a list of labels, or a text with `|` between labels;
    a row may have none. Every label is a question of its own, answered yes if its logit is above 0. The loss is the
    mean binary cross-entropy over rows and labels, in nats."""

    auto_class = "AutoModelForSequenceClassification"
    peft_auto_class = "AutoPeftModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    pipeline = "text-classification"
    row_labels = False
    problem_type = "multi_label_classification"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "micro-f1": Metric("micro F1"),
        "macro-f1": Metric("macro F1"),
        "subset-accuracy": Metric("subset accuracy"),
        "loss": LOSS,
    }
    chosen_by = "micro-f1"

    def columns(self, data: Data) -> dict[str, str]:
        """Return the column of texts."""
        return {data.text_column: "data.text-column"}

    def recognise(self, sight: Sight) -> Guess | None:
        """Return the columns of texts and of lists, whose name is one for labels."""
        return by_values(sight, sight.text(), Holds.LIST)

    def labels_of(
        self, raw: Raw, column: str, given: Sequence[str], rows: Positions, by_position: bool | None, most: int = 0
    ) -> Labels:
        """Return the label names, without a label for every row. Raises DataError."""
        if not given:
            check_separator(raw, column, rows)
        items = label_items(raw, column, rows)
        return replace(super().labels_of(items, column, given, np.arange(len(items)), by_position, most), codes=None)

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder of texts and their labels."""
        return LabelSetEncoder(_texts(base, data), data.label_column, labels)

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a short text of the first label and a long one of all."""
        return {data.text_column: ["a", "a " * data.max_length], data.label_column: [[data.labels[0]], [*data.labels]]}

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield how many labels a row has."""
        assert isinstance(rows.inputs, Targets)
        counts = rows.inputs.values.sum(1)
        bare = int((counts == 0).sum())
        yield f"labels    {counts.mean():.2f} a row, at most {int(counts.max())}; {bare:,} rows have none"

    def evaluate(self, module: "nn.Module", rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
        """Return micro and macro F1, the share of rows whose labels are all right, and the binary cross-entropy."""
        from task.prediction.outputs import outputs

        return scores(*outputs(module, rows, device, at_once))

    def predict(
        self, module: "nn.Module", base: Path, data: Data, raw: Raw, rows: Positions, device: str
    ) -> "Iterator[Prediction]":
        """Yield the labels of each row, with `|` between them, and the probability of every label by itself."""
        from task.prediction.label_sets import label_sets

        with encoded(_texts(base, data), raw, rows) as inputs:
            yield from label_sets(module, inputs, labels_in(module), SEPARATOR, device)

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return the loss of a model that gives every label the probability 1/2."""
        return {"loss": math.log(2)}


@dataclass(frozen=True)
class LabelSetEncoder(TargetEncoder):
    """An encoder of texts with a set of labels each."""

    labels: tuple[str, ...]

    def values(self, raw: Raw, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return which labels rows have, (N, labels) uint8."""
        items = label_items(raw, self.column, rows)
        found = np.zeros((len(rows), len(self.labels)), np.uint8)
        if len(items):  # numbers were found to be positions, if they are, in all rows of the split
            codes = label_codes(items, self.column, self.labels, np.arange(len(items)), by_position=True).codes
            places = {int(row): place for place, row in enumerate(rows)}
            assert items.owners is not None
            found[[places[int(row)] for row in items.owners], codes] = 1
        return found


def scores(logits: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """Return the metrics of logits (N, K) for labels (N, K) of 0 or 1, both float64. F1 is 0 where neither the rows nor
    the answers have a label."""
    from sklearn.metrics import accuracy_score, f1_score

    said, true_labels = logits > 0, true > 0
    f1 = {name: f1_score(true_labels, said, average=name, zero_division=0) for name in ("micro", "macro")}
    return {
        **{f"{name}-f1": float(value) for name, value in f1.items()},
        "subset-accuracy": float(accuracy_score(true_labels, said)),
        "loss": float((np.logaddexp(0, logits) - true * logits).mean()),
    }


def _texts(base: Path, data: Data) -> TextEncoder:
    return TextEncoder(base, data.text_column, data.max_length)

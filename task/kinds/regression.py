"""Regression: texts with a number each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from task.config import Data, TaskConfig
from task.data.encoding.targets import TargetEncoder
from task.data.encoding.texts import TextEncoder
from task.data.guessing.columns import Holds
from task.data.guessing.guess import Guess, Sight, by_values
from task.data.labels import SEPARATOR, Labels
from task.data.raw import Raw
from task.data.rows import Rows, Targets
from task.data.sources.base import Source
from task.data.tables.numbers import numbers_of
from task.kinds.base import Encoder, Kind, Positions, encoded
from task.metrics import LARGEST_LOSS, Metric

if TYPE_CHECKING:
    from torch import nn

    from task.prediction.answer import Prediction

FURTHEST = math.sqrt(LARGEST_LOSS)
LEAST_R2 = -LARGEST_LOSS  # a worse one is cut to this
FAR = 10.0  # a mean or a spread of numbers from which on they are learned slowly


@dataclass(frozen=True)
class Regression(Kind):
    """Regression on texts: `data.label-column` has a number for each row, and the head has one output.

    Numbers are learned as they are, with the mean squared error, as transformers does with `problem_type =
    "regression"`. They are not standardised: nobody knows the mean and the spread of all nodes' numbers.
    """

    auto_class = "AutoModelForSequenceClassification"
    peft_auto_class = "AutoPeftModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    pipeline = "text-classification"
    row_labels = False
    problem_type = "regression"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "rmse": Metric("root mean squared error", 0.0, FURTHEST, lowest=True),
        "mae": Metric("mean absolute error", 0.0, FURTHEST, lowest=True),
        "r2": Metric("R2", LEAST_R2),
        "pearson": Metric("Pearson correlation", -1.0),
        "loss": Metric("mean squared error", 0.0, LARGEST_LOSS, lowest=True),
    }
    chosen_by = "rmse"

    def problems(self, config: TaskConfig) -> list[str]:
        """Return the problems, including labels, which numbers do not have."""
        found = super().problems(config)
        if len(config.data.labels) > 1:
            found.append(f"data.labels names classes, and {self._key} learns numbers: leave it out")
        return found

    def resolve(self, data: Data) -> Data:
        """Return the settings with a name for the output of the head: that of the column."""
        return replace(data, labels=data.labels or (data.label_column.replace(SEPARATOR, " "),))

    def columns(self, data: Data) -> dict[str, str]:
        """Return the column of texts."""
        return {data.text_column: "data.text-column"}

    def recognise(self, sight: Sight) -> Guess | None:
        """Return the columns of texts and of numbers with a fraction, whose name is one for labels."""
        return by_values(sight, sight.text(), Holds.NUMBER)

    def labels_of(
        self, raw: Raw, column: str, given: Sequence[str], rows: Positions, by_position: bool | None, most: int = 0
    ) -> Labels:
        """Return the name of the output. Numbers may differ in every row. Raises DataError for a bad one."""
        numbers_of(raw, column, rows)
        return Labels(tuple(given), None)

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder of texts and their numbers."""
        return NumberEncoder(_texts(base, data), data.label_column)

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a short text and a long one, with a number each."""
        return {data.text_column: ["a", "a " * data.max_length], data.label_column: [0.0, 1.0]}

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield the range, the mean and the spread of the numbers."""
        assert isinstance(rows.inputs, Targets)
        numbers = rows.inputs.values.astype(np.float64)
        yield (
            f"numbers   {numbers.min():g} to {numbers.max():g}, mean {numbers.mean():.4g}, standard deviation "
            f"{numbers.std():.4g}"
        )

    def evaluate(self, module: "nn.Module", rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
        """Return the mean squared error (`loss`), its root, the mean absolute error, R2 and Pearson's correlation."""
        from task.prediction.outputs import outputs

        logits, labels = outputs(module, rows, device, at_once)
        return scores(logits[:, 0], labels)

    def predict(
        self, module: "nn.Module", base: Path, data: Data, raw: Raw, rows: Positions, device: str
    ) -> "Iterator[Prediction]":
        """Yield the number of each row."""
        from task.prediction.numbers import numbers

        with encoded(_texts(base, data), raw, rows) as inputs:
            yield from numbers(module, inputs, device)

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return no metrics: a guess would depend on the numbers."""
        return {}


@dataclass(frozen=True)
class NumberEncoder(TargetEncoder):
    """An encoder of texts with one number each."""

    def values(self, raw: Raw, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the numbers (N,) float32."""
        return numbers_of(raw, self.column, rows)

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices, also on numbers that are far from those that a new head puts out."""
        said = super().write(folder, part, raw, rows)
        numbers = np.asarray(self.read(folder, part).values, np.float64)
        if part != "train" or not len(numbers) or max(abs(numbers.mean()), numbers.std()) <= FAR:
            return said
        return (
            *said,
            f"the numbers of column '{self.column}' have mean {numbers.mean():.3g} and standard deviation "
            f"{numbers.std():.3g}, and a new head puts out numbers near 0: with mean 0 and deviation 1 they are "
            "learned in fewer rounds",
        )


def scores(said: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """Return the metrics of predictions (N,) of numbers (N,), both float64. Where all `true` are equal, R2 is 1 for
    exact predictions and else 0; where either side is constant, the correlation is 0. All are NaN if a prediction is
    not finite."""
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    if not np.isfinite(said).all():  # scikit-learn would raise; whoever watches the loss acts on a run that diverges
        return dict.fromkeys(Regression.metrics, math.nan)
    squared, varied = float(mean_squared_error(true, said)), bool(np.ptp(true)) and bool(np.ptp(said))
    r2 = float(r2_score(true, said)) if len(true) > 1 else float(squared == 0)
    pearson = float(np.corrcoef(true, said)[0, 1]) if varied else 0.0
    return {
        "rmse": math.sqrt(squared),
        "mae": float(mean_absolute_error(true, said)),
        "r2": max(r2, LEAST_R2),
        "pearson": pearson,
        "loss": squared,
    }


def _texts(base: Path, data: Data) -> TextEncoder:
    return TextEncoder(base, data.text_column, data.max_length)

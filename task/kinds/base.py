"""What a task kind is: all that depends on what is learned. The defaults classify rows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from task.config import EMBEDDED_DATA, EMBEDDED_MODEL, Data, TaskConfig, TaskKind
from task.data.encoding.texts import blank
from task.data.labels import Labels, check_few, label_names, labelled
from task.data.raw import Raw
from task.data.rows import Inputs, Rows
from task.data.sources.base import Source

if TYPE_CHECKING:
    from torch import nn

EVALUATION_ROWS = 256  # that are scored at a time
LARGEST_EXPONENT = 100.0  # nats; no larger loss is raised to a perplexity, which would overflow
LARGEST_LOSS = 1e6  # nats: a model that guesses has the logarithm of its classes or words, a ruined one thousands
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation measures: what people call it, the values that it can have, and whether the best is
    the lowest."""

    title: str
    low: float = 0.0
    high: float = 1.0
    lowest: bool = False


LOSS = Metric("loss", 0.0, LARGEST_LOSS, lowest=True)
ACCURACY = Metric("accuracy")
PERPLEXITY = Metric("perplexity", 1.0, math.exp(LARGEST_EXPONENT), lowest=True)


class Encoder(Protocol):
    """What makes model inputs of rows, for one base."""

    def recipe(self) -> object:
        """Return all that the inputs depend on, beside the rows."""

    def write(self, folder: Path, part: str, raw: Raw, rows: Positions) -> tuple[str, ...]:
        """Prepare these rows of a part; return sentences on what was cut. Raises DataError for a row that cannot be."""

    def read(self, folder: Path, part: str) -> Inputs:
        """Return what `write` prepared, mapped into memory."""


@dataclass(frozen=True)
class Kind(TaskKind, ABC):
    """A kind of task. Its name is the name of its file, which is the value of `task.kind`."""

    # ------------------------------------------------------------------ declarations
    auto_class: ClassVar[str]  # the class of transformers that loads a base
    peft_auto_class: ClassVar[str]  # the class of peft that loads a base with its adapter
    peft_task_type: ClassVar[str]  # peft's word for it; empty: it has none
    pipeline: ClassVar[str]  # of transformers, which runs a tuned model
    images: ClassVar[bool] = False  # the inputs are images; else texts
    input_noun: ClassVar[str] = "a text"  # what an input is called
    base_noun: ClassVar[str] = "a text model"
    data_noun: ClassVar[str] = "text data"
    drawn_head: ClassVar[bool] = True  # a head has one output for each of data.labels, and may be drawn at random
    row_labels: ClassVar[bool] = True  # a row can have one label, by which data can be divided
    per_token: ClassVar[bool] = False  # tokens are learned and counted, not rows
    problem_type: ClassVar[str] = "single_label_classification"  # of transformers' settings; empty: they have none
    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": ACCURACY, "loss": LOSS}
    chosen_by: ClassVar[str] = "accuracy"  # the metric that the best round is chosen by

    @property
    def name(self) -> str:
        """The key it is chosen by: the name of its file."""
        return type(self).__module__.rsplit(".", 1)[-1].replace("_", "-")

    # ------------------------------------------------------------------ settings
    def problems(self, config: TaskConfig) -> list[str]:
        """Return what is wrong between this kind and the settings."""
        found = []
        if not self.images and config.model.name == EMBEDDED_MODEL:
            found.append(f"model.name = 'embedded' is a model of images; name {self.base_noun} for {self._key}")
        if not self.images and config.data.name == EMBEDDED_DATA:
            found += self._without_data(config)
        if not self.row_labels and config.data.partitioner.needs_labels:
            found.append(
                f"data.partitioner = '{config.data.partitioner.name}' divides rows by their label, and a row of "
                f"{self._key} has none; use 'iid', or 'natural' with data.id-column"
            )
        return found

    def shaping(self, data: Data) -> Data:
        """Return the settings of data that shape the model; all others at their defaults."""
        return Data(labels=data.labels) if self.drawn_head else Data()

    def resolve(self, data: Data) -> Data:
        """Return the settings of data with all that a run fills in when it starts, apart from labels."""
        return data

    @property
    def _key(self) -> str:
        return f"task.kind = '{self.name}'"

    def _without_data(self, config: TaskConfig) -> list[str]:
        """What keeps a run of texts from going without data on the server, where none is named."""
        if not config.data.partitioner.own_rows:
            return [f"data.name = 'digits' are images; name {self.data_noun} for {self._key}"]
        found = []
        if config.evaluate != "nodes":
            found.append(
                f"evaluate = '{config.evaluate}' scores rows of the server, and it has none: name {self.data_noun} by "
                "data.name, or set evaluate = 'nodes'"
            )
        if self.drawn_head and not config.data.labels:
            found.append("data.labels must name the labels: nodes bring all data (data.partitioner = 'none')")
        return found

    # ------------------------------------------------------------------ data
    @abstractmethod
    def columns(self, data: Data) -> dict[str, str]:
        """Return the columns that inputs are made of, each with the key that names it."""

    def required(self, data: Data) -> list[str]:
        """Return those of `columns` that data must have: all of them."""
        return list(self.columns(data))

    def missing(self, raw: Raw, column: str) -> NDArray[np.bool_]:
        """Return which rows (N,) have nothing in an input column: of texts, no sign that shows. Raises DataError for a
        value that is no text."""
        empty = np.zeros(len(raw), bool)
        for row, value in enumerate(raw.values(column)):
            empty[row] = blank(value)
            if not empty[row] and not isinstance(value, str):
                raise raw.fault(row, column, "no text", f", but {value!r:.60}")
        return empty

    def labels_of(
        self, raw: Raw, column: str, given: Sequence[str], rows: Positions, by_position: bool | None, most: int = 0
    ) -> Labels:
        """Return the label names, those `given` if any, and the label of every row, as `label_codes` reads them.

        `most` is how many different labels a column may have (0: any number), as `check_few` says. Raises
        DataError.
        """
        if most:
            check_few(raw, column, most, rows)
        names = label_names(raw, column, given, rows)
        return labelled(raw, column, names, rows, by_position)

    @abstractmethod
    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source) -> Encoder:
        """Return what makes inputs of the rows of a source, for the model in folder `base`. Raises DataError, BaseError
        where the base does not say how."""

    @abstractmethod
    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return two rows, by column, that stand in for those of nodes: the shortest, and one of data.max-length."""

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield lines for `thistledown check` on the inputs of the train part: none."""
        yield from ()

    # ------------------------------------------------------------------ model
    def model_settings(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return what the model's config.json must say of its head."""
        settings = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: number for number, name in enumerate(labels)},
        }
        return settings | ({"problem_type": self.problem_type} if self.problem_type else {})

    def check_model(self, module: Any, name: str) -> None:
        """Raise BaseError where the model of base `name`, once loaded, cannot learn this: never."""

    # ------------------------------------------------------------------ quality
    def evaluate(self, module: "nn.Module", rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
        """Return the `metrics` of a model in evaluation mode: the mean cross-entropy (`loss`, nats) and the share of
        rows whose label has the largest logit (`accuracy`). `at_once` batches are scored at a time."""
        import torch

        from task.training.parallel_evaluation import evaluate_in_parallel, portion

        def score(positions: torch.Tensor) -> tuple[float, int]:
            batch = rows.batch(positions, device)
            output = module(**batch)
            return float(output.loss) * len(positions), int((output.logits.argmax(-1) == batch["labels"]).sum())

        batches = torch.split(torch.arange(len(rows)), portion(EVALUATION_ROWS, device))
        losses, correct = zip(*evaluate_in_parallel(score, batches, at_once), strict=True)
        return {"loss": math.fsum(losses) / len(rows), "accuracy": sum(correct) / len(rows)}

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return the metrics of who guesses, as far as they are known."""
        return {"accuracy": 1 / max(2, len(labels)), "loss": math.log(max(2, len(labels)))}

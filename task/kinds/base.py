"""The base class of task kinds. A kind has everything that depends on what is learned. The defaults classify rows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from task import extensions
from task.config import CLASS_MEANS, EMBEDDED_DATA, EMBEDDED_MODEL, Data, TaskConfig, TaskKind
from task.data.encoding.texts import blank
from task.data.guessing.guess import Guess, Sight
from task.data.labels import Labels, category_names, check_few, label_names, labelled
from task.data.raw import Raw
from task.data.rows import IGNORED, Inputs, Rows
from task.data.sources.base import Source
from task.metrics import ACCURACY, LOSS, Metric

if TYPE_CHECKING:
    import torch
    from torch import nn

    from task.prediction.answer import Exchange, Prediction

ASKED = "asked"  # the name of the part of rows that are predicted
EVALUATION_ROWS = 256  # rows scored at a time
Positions = NDArray[np.int64]


class Encoder(Protocol):
    """An encoder of rows as model inputs, for one base."""

    def recipe(self) -> object:
        """Return everything but the rows that the inputs depend on."""

    def write(self, folder: Path, part: str, raw: Raw, rows: Positions) -> tuple[str, ...]:
        """Prepare these rows of a part; return notices on what was cut. Raises DataError for a bad row."""

    def read(self, folder: Path, part: str) -> Inputs:
        """Return the inputs that `write` prepared, mapped into memory."""


@dataclass(frozen=True)
class Kind(TaskKind, ABC):
    """A task kind. Its name is the name of its file, which is the value of `task.kind`."""

    # ------------------------------------------------------------------ declarations
    auto_class: ClassVar[str]  # the class of transformers that loads a base
    peft_auto_class: ClassVar[str]  # the class of peft that loads a base with its adapter
    peft_task_type: ClassVar[str]  # peft's task type; empty: peft has none
    pipeline: ClassVar[str]  # the transformers pipeline that runs a tuned model, or the Hub's word for the task
    piped: ClassVar[bool] = True  # transformers has such a pipeline; otherwise the model generates by itself
    images: ClassVar[bool] = False  # the inputs are images, otherwise texts
    input_noun: ClassVar[str] = "a text"  # the noun for an input in messages
    base_noun: ClassVar[str] = "a text model"
    data_noun: ClassVar[str] = "text data"
    drawn_head: ClassVar[bool] = True  # the head has one output per label of data.labels, and may be drawn at random
    row_labels: ClassVar[bool] = True  # a row can have one class as its label, and data can be divided by it
    packs: ClassVar[bool] = False  # rows may be put behind one another: no token depends on one after it
    per_token: ClassVar[bool] = False  # tokens are learned and counted, not rows
    needs_reference: ClassVar[bool] = False  # its loss compares with the base, which must stay as it was
    writes: ClassVar[bool] = False  # it writes texts as answers, so it has `exchanges`
    problem_type: ClassVar[str] = "single_label_classification"  # in transformers' settings; empty: none
    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": ACCURACY, "loss": LOSS}
    chosen_by: ClassVar[str] = "accuracy"  # the metric that selects the best round
    begin_with: ClassVar[Mapping[str, object]] = {  # what `thistledown new` writes: a small base, and how it trains
        "model.name": "sentence-transformers/all-MiniLM-L6-v2",
        "num-server-rounds": 10,
        "learning-rate": 0.005,
        "batch-size": 16,
    }

    @property
    def name(self) -> str:
        """Return the name of its file, which is the value of `task.kind`."""
        return extensions.name_of(type(self))

    # ------------------------------------------------------------------ settings
    def problems(self, config: TaskConfig) -> list[str]:
        """Return the conflicts between this kind and the settings."""
        found = []
        if not self.images and config.model.name == EMBEDDED_MODEL:
            found.append(f"model.name = 'embedded' is an image model; name {self.base_noun} for {self._key}")
        if not self.images and config.data.name == EMBEDDED_DATA:
            found += self._without_data(config)
        if not self.drawn_head and (config.rounds_of_head or config.head_rate not in (0, 1)):
            found.append(f"{self._key} has no classifier's head: leave out head-rate, head-rounds, head-init")
        if self.images and config.group_by_length:
            found.append(f"group-by-length = true is for texts; inputs of {self._key} all have the same size")
        if self.images and config.model.quantized:
            quantized = f"model.quantization = '{config.model.quantization}'"
            found.append(f"{quantized} is for text models, not for {self._key}; set it to 'none'")
        if config.packing and not self.packs:
            found.append(f"packing = true is for language models (task.kind = 'causal-lm'), not for {self._key}")
        if config.packing and config.tuning.soft_prompts:
            found.append(
                f"packing = true: tuning = '{config.tuning.name}' puts tokens in front of every row; "
                "set packing = false"
            )
        if config.evaluate_generations and not self.writes:
            found.append(f"evaluate-generations is for kinds that write texts, as causal-lm does, not for {self._key}")
        if not self.row_labels and config.data.partitioner.needs_labels:
            found.append(
                f"data.partitioner = '{config.data.partitioner.name}' divides rows by their label, and a row of "
                f"{self._key} has no class of its own; use 'iid', or 'natural' with data.id-column"
            )
        if self.drawn_head and not self.row_labels and config.head_init == CLASS_MEANS:
            found.append(f"head-init = 'ncm' needs one class for every row, which {self._key} has not; leave it out")
        return found

    def shaping(self, data: Data) -> Data:
        """Return the data settings that shape the model; all others at their defaults."""
        return Data(labels=data.labels) if self.drawn_head else Data()

    def resolve(self, data: Data) -> Data:
        """Return the data settings with the values that a run fills in when it starts, except labels found in data."""
        return data

    @property
    def _key(self) -> str:
        return f"task.kind = '{self.name}'"

    def _without_data(self, config: TaskConfig) -> list[str]:
        """Return why a run on texts cannot go without data on the server, if no data is named."""
        if not config.data.partitioner.own_rows:
            return [f"data.name = 'digits' are images; name {self.data_noun} for {self._key}"]
        found = []
        if config.evaluate != "nodes":
            found.append(
                f"evaluate = '{config.evaluate}' scores rows of the server, and it has none: name {self.data_noun} by "
                "data.name, or set evaluate = 'nodes'"
            )
        if self.drawn_head and not self.resolve(config.data).labels:
            found.append("data.labels must name the labels: nodes bring all data (data.partitioner = 'none')")
        return found

    # ------------------------------------------------------------------ data
    @abstractmethod
    def columns(self, data: Data) -> dict[str, str]:
        """Return the input columns, each with the key that names it."""

    def recognise(self, sight: Sight) -> Guess | None:
        """Return the columns of this kind in data that nobody has described; None if it has no such rows. The default
        recognises none."""
        return None

    def required(self, data: Data) -> list[str]:
        """Return the columns that data must have: all of `columns`."""
        return list(self.columns(data))

    def missing(self, raw: Raw, column: str) -> NDArray[np.bool_]:
        """Return which rows (N,) are empty in an input column; a text without visible characters is empty. Raises
        DataError for a value that is not a text."""
        empty = np.zeros(len(raw), bool)
        for row, value in enumerate(raw.values(column)):
            empty[row] = blank(value)
            if not empty[row] and not isinstance(value, str):
                raise raw.fault(row, column, "no text", f", but {value!r:.60}")
        return empty

    def labels_of(
        self, raw: Raw, column: str, given: Sequence[str], rows: Positions, by_position: bool | None, most: int = 0
    ) -> Labels:
        """Return the label names, those `given` if any, and the label of every row, as `label_codes` does. Without a
        head for them they are categories, of which one is enough.

        `most` is the largest number of different labels in a column (0: any), as in `check_few`. Raises DataError.
        """
        if most:
            check_few(raw, column, most, rows)
        names = (label_names if self.drawn_head else category_names)(raw, column, given, rows)
        return labelled(raw, column, names, rows, by_position)

    @abstractmethod
    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return the encoder for the rows of a source (None: of any) and the model in folder `base`. Raises DataError
        or BaseError if the base lacks the files for it."""

    @abstractmethod
    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return two placeholder rows for those of nodes, by column: the shortest, and one of data.max-length."""

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield lines for `thistledown check` on the inputs of the train part. The default yields none."""
        yield from ()

    # ------------------------------------------------------------------ model
    def model_settings(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return the settings of the head for the model's config.json."""
        settings = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: number for number, name in enumerate(labels)},
        }
        return settings | ({"problem_type": self.problem_type} if self.problem_type else {})

    def check_model(self, module: Any, name: str) -> None:
        """Raise BaseError if the loaded model of base `name` cannot learn this task. The default never raises."""

    # ------------------------------------------------------------------ learning
    def loss(self, module: "nn.Module", batch: Mapping[str, Any]) -> "torch.Tensor":
        """Return the loss of a batch: a mean over as many parts as `count` says. The default is the model's own."""
        return module(**batch).loss  # type: ignore[no-any-return]

    def count(self, batch: Mapping[str, Any]) -> "torch.Tensor":
        """Return over how many parts the loss of a batch is a mean: its labels. Parts of batches count by it."""
        import torch

        labels: torch.Tensor = batch["labels"]
        if labels.is_floating_point():  # numbers to learn, any of which may equal IGNORED
            return torch.tensor(labels.numel(), device=labels.device)
        return (labels != IGNORED).sum()

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

    def asked(self, data: Data) -> dict[str, str]:
        """Return the columns that a row must have to be predicted, each with the key that names it: all of
        `required`."""
        keys = self.columns(data)
        return {column: keys[column] for column in self.required(data)}

    def question(self, data: Data, value: str) -> dict[str, object]:
        """Return one text, or one path of an image, as a row to be predicted."""
        [column, *_] = self.asked(data)
        return {column: value}

    def predict(
        self, module: "nn.Module", base: Path, data: Data, raw: Raw, rows: Positions, device: str
    ) -> "Iterator[Prediction]":
        """Yield what a tuned model says of each of these rows. `base` has the files that describe its inputs.

        The default encodes rows as for training and classifies them. Raises DataError for a row that cannot be encoded.
        """
        from task.prediction.classification import classify

        labels = labels_in(module)
        with encoded(self.encoder(base, data, labels, None), raw, rows) as inputs:
            yield from classify(module, inputs, labels, device)

    def exchanges(self, module: "nn.Module", base: Path, data: Data, rows: Rows, device: str) -> "Iterator[Exchange]":
        """Yield each of these prepared rows with what a model in evaluation mode writes as its answer."""
        raise NotImplementedError(f"{self._key} does not write texts")

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return the metrics of random guessing, as far as they are known."""
        return {"accuracy": 1 / max(2, len(labels)), "loss": math.log(max(2, len(labels)))}


def labels_in(module: Any) -> tuple[str, ...]:
    """Return the label names that a model states, in the order of its outputs."""
    return tuple(module.config.id2label[number] for number in range(module.config.num_labels))


@contextmanager
def encoded(encoder: Encoder, raw: Raw, rows: Positions) -> Iterator[Inputs]:
    """Yield the inputs of these rows, which are gone after this block. Raises DataError."""
    with TemporaryDirectory(prefix="thistledown-") as place:
        encoder.write(Path(place), ASKED, raw, rows)
        yield encoder.read(Path(place), ASKED)

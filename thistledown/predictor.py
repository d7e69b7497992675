"""The tuned model of a results folder, asked about new rows."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from server_app.config import RunConfig
from server_app.resuming import settings_of
from task.data.encoding.texts import tokenizer_in
from task.data.raw import Raw
from task.data.sources.registry import open_source
from task.data.unlabelled import read_rows, values_as_rows, with_inputs
from task.device import found
from task.kinds import registry as kinds
from task.models.base import Base
from task.models.finding import server_base
from task.models.usage import ready
from task.prediction.answer import Prediction
from task.prediction.chat import Conversation
from task.prediction.streaming import Streamed, Write
from task.schema import ConfigError
from task.storage.store import server_store
from thistledown.settings import Values

if TYPE_CHECKING:
    from torch import nn

MODEL = "model"  # in a results folder
CHATS = "text-generation"  # pipeline of kinds whose models can be talked to
OWN_FORMAT = {"data.delimiter": "", "data.encoding": ""}  # the run's own say nothing of another file


def model_folder(results: Path, which: str) -> Path:
    """Return the folder of the model of a round. Raises ConfigError if the run wrote none."""
    folder = results.resolve() / MODEL / which
    if not folder.is_dir():
        raise ConfigError([f"there is no model in {folder}: no round of the run has trained"])
    return folder


class Predictor:
    """The model of the `best` or `last` round of a run. `changed` are keys of [data] that differ from the run's.

    Raises ConfigError for a folder without results or without a model, and for other keys.
    """

    def __init__(self, results: Path, which: str = "best", changed: Values | None = None) -> None:
        if strange := [key for key in changed or {} if not key.startswith("data.")]:
            raise ConfigError(
                [f"{key} does not change what a tuned model says; only keys of [data] do" for key in strange]
            )
        run = RunConfig.read(settings_of(results) | OWN_FORMAT | (changed or {}))
        self.folder = model_folder(results, which)
        self.task, self.device = run.task, found(run.server.server_device)
        self.kind = kinds.of(self.task)

    def rows_of(self, name: str) -> Raw:
        """Return the rows of a file or folder. Raises DataError."""
        return read_rows(self.task, open_source(name))

    def rows_from(self, values: Sequence[str]) -> Raw:
        """Return texts, or paths of images, as rows."""
        return values_as_rows(self.task, values)

    def asked(self, raw: Raw) -> NDArray[np.int64]:
        """Return the rows that have something to ask about. Raises DataError for an input of the wrong type."""
        return with_inputs(self.task, raw)

    def predict(self, raw: Raw, rows: NDArray[np.int64]) -> Iterator[Prediction]:
        """Yield the prediction of every row. Raises DataError for one that cannot be encoded."""
        return self.kind.predict(self.model, self._base.folder, self.task.data, raw, rows, self.device)

    def stream(self, raw: Raw, row: int, write: Write) -> Prediction:
        """Return what a language model writes in answer to a row, and write it in pieces as it is generated. Raises
        DataError for a row that cannot be encoded."""
        streamed: Any = Streamed(self.model, tokenizer_in(self._base.folder), write)
        rows = np.array([row])
        [found] = self.kind.predict(streamed, self._base.folder, self.task.data, raw, rows, self.device)
        return found

    def conversation(self) -> Conversation:
        """Return a conversation with the model. Raises ConfigError for a task that is not about writing after prompts,
        and DataError for a chat template that cannot be used."""
        if self.kind.pipeline != CHATS:
            raise ConfigError(
                [f"task.kind = '{self.kind.name}' has no conversations; --chat is for task.kind = 'causal-lm'"]
            )
        return Conversation(self.model, self._base.folder, self.task.data, self.device)

    @cached_property
    def model(self) -> "nn.Module":
        """The tuned model, in evaluation mode. Raises BaseError if its base is not available."""
        return ready(self.task, self._base, self.folder).to(self.device)

    @cached_property
    def _base(self) -> Base:
        return server_base(self.task.model, server_store())

"""The outcome of a run: metrics as rows, the tuned model, and all results as a folder."""

import html
import json
import shutil
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server_app.config import RunConfig
from server_app.results import started
from server_app.results.endings import METRICS, summary_of, write_summary
from server_app.results.lines import row_of
from server_app.results.measure import measure_of
from server_app.results.page.rounds import round_table
from server_app.results.recorded import Recorded
from server_app.results.tuned import write_tuned
from server_app.resuming import settings_of
from strategies.protocol import checkpoint
from task.models.finding import server_base
from task.models.usage import ready
from task.prediction.answer import NOTHING, Prediction
from task.schema import ConfigError
from task.storage.store import server_store
from thistledown.predictor import MODEL, Predictor, model_folder
from thistledown.settings import PLACES
from thistledown.summary import summary_lines

if TYPE_CHECKING:
    from torch import nn

INPUTS = "inputs"  # in a results folder
STATES = {"best": checkpoint.BEST, "last": checkpoint.LAST}


class Outcome:
    """The results of a run in `folder`, such as `outputs/latest`.

    `temporary` is a folder that is deleted together with this object.
    """

    def __init__(self, folder: Path | str, temporary: Path | None = None) -> None:
        self.folder = Path(folder).resolve()
        self._temporary = temporary
        self._predictors: dict[str, Predictor] = {}  # by state, so that each model is loaded once
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    @property
    def summary(self) -> dict[str, Any]:
        """Return summary.json: how the run ended, its scores and its cost."""
        return summary_of(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return one row per round, round 0 first, for `pandas.DataFrame`: numbers, texts, None."""
        return [row_of(line) for line in self._lines]

    def model(self, which: str = "best") -> "nn.Module":
        """Return the tuned model of the `best` or the `last` round, in evaluation mode.

        The model is the one that the lines of Python at the end of a run load: a transformers model, or a peft model
        with its base. Raises ConfigError for another value of `which`, and if the run wrote no model.
        """
        folder, task = model_folder(self.folder, self._known(which)), self._run.task
        return ready(task, server_base(task.model, server_store()), folder)

    def predict(self, values: Sequence[str] | str | Path, which: str = "best") -> list[Prediction]:
        """Return what the tuned model of the `best` or the `last` round says of texts, or of paths of images; or of
        every row of a file, given by its path.

        A prediction has an `answer` and, by a classifier, the `probabilities` of all labels, the likeliest first. Rows
        without an input have the answer "". Raises ConfigError as `model` does, and DataError for rows that cannot be
        read.
        """
        predictor = self._predictors.setdefault(self._known(which), Predictor(self.folder, which))
        if isinstance(values, str | Path):
            raw = predictor.rows_of(str(values))
        else:
            raw = predictor.rows_from(list(map(str, values)))
        found = [NOTHING] * len(raw)
        rows = predictor.asked(raw)
        for row, prediction in zip(rows, predictor.predict(raw, rows), strict=True):
            found[row] = prediction
        return found

    def save(self, folder: Path | str) -> Path:
        """Copy all results to a new folder and return it.

        `model/best` and `model/last` load from there without this outcome, and the run can be resumed there.
        Raises ConfigError if the folder is not empty.
        """
        place = Path(folder).expanduser().absolute()
        if place.exists() and any(place.iterdir()):
            raise ConfigError([f"{place} is not empty; name a new folder"])
        shutil.copytree(self.folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MODEL))
        run = self._moved(place)
        states = {
            which: (round, state)
            for which, name in STATES.items()
            if (path := place / "checkpoints" / name).exists()
            for state, about in [checkpoint.load(path)]
            for round in [int(about["round"])]
        }
        usage = write_tuned(run, run.task, states, place / MODEL, Recorded.of(place))
        write_summary(place, self.summary | {"folder": str(place), "usage": usage})
        return place

    def __repr__(self) -> str:
        return "\n".join(self._said())

    def _repr_html_(self) -> str:
        """Return the summary and a table of the rounds, for notebooks."""
        said = "<br>".join(map(html.escape, self._said()))
        return f"<p>{said}</p>{round_table(measure_of(self._run.task).titles, self._lines)}"

    def _said(self) -> list[str]:
        """Return the summary as text, without the lines of Python, which `model` replaces."""
        lines = summary_lines({key: value for key, value in self.summary.items() if key != "usage"})[1:]
        return (
            lines
            if self._temporary is None
            else [*lines[:-1], "results in a temporary folder: save(folder) keeps them"]
        )

    @property
    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / METRICS).read_text(encoding="utf-8").splitlines()]

    @cached_property
    def _run(self) -> RunConfig:
        return RunConfig.read(settings_of(self.folder))

    def _moved(self, place: Path) -> RunConfig:
        """Return the settings of a copy in `place`, to which inputs in the temporary folder are copied too."""
        inputs = self._temporary and self._temporary / INPUTS
        if inputs is None or not inputs.exists():
            return self._run
        shutil.copytree(inputs, place / INPUTS)
        flat = settings_of(self.folder)
        for key in PLACES:
            if (path := Path(str(flat[key]))).is_relative_to(inputs):
                flat[key] = str(place / INPUTS / path.relative_to(inputs))
        started.write(place, flat)
        return RunConfig.read(flat)

    def _known(self, which: str) -> str:
        if which not in STATES:
            raise ConfigError([f"there is no state '{which}' (there are {', '.join(STATES)})"])
        return which

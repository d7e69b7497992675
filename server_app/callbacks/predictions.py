"""Test rows that the report shows with their predictions: by the base and by the best state."""

from collections.abc import Sequence
from pathlib import Path

from server_app.evaluation import Evaluator
from server_app.results.history import History
from server_app.results.samples import BEFORE, BEST, PREDICTIONS, Samples
from strategies.exchange.callback import Callback, RoundReport
from strategies.exchange.types import State
from strategies.protocol import checkpoint
from task.prediction.answer import Classified


class Predictions(Callback):
    """Writes at most `count` predictions to the results folder. Called before the results folder, which shows them."""

    def __init__(self, folder: Path, history: History, evaluator: Evaluator, count: int) -> None:
        self._samples, self._history = Samples(folder, PREDICTIONS), history
        self._evaluator, self._count = evaluator, count

    def on_round(self, report: RoundReport, state: State) -> None:
        """Have the untrained state classify."""
        if report.number == 0:
            self._write(BEFORE, self._evaluator.classified(state, self._count))

    def on_end(self, error: BaseException | None) -> None:
        """Have the best state classify."""
        if error is not None or self._history.best is None:
            return
        if self._history.best["round"] == 0:
            self._samples.copy(BEFORE, BEST)
            return
        state, _ = checkpoint.load(self._samples.folder / "checkpoints" / checkpoint.BEST)
        self._write(BEST, self._evaluator.classified(state, self._count))

    def _write(self, which: str, found: Sequence[Classified]) -> None:
        rows = [{"row": one.row, "label": one.label} for one in found]
        answers = [{"label": one.answer, "probability": one.probability} for one in found]
        self._samples.add(which, rows, answers)

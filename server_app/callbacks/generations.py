"""Test rows that the model answers by generation: before training, after the last round, and by the best state."""

from pathlib import Path

from server_app.evaluation import Evaluator
from server_app.results.history import History
from server_app.results.samples import BEFORE, BEST, GENERATIONS, LAST, Samples
from strategies.exchange.callback import Callback, RoundReport
from strategies.exchange.types import State
from strategies.protocol import checkpoint
from task.prediction.answer import Exchange
from task.prediction.ratings import rated


class Generations(Callback):
    """Writes the answers to the results folder, adds their ratings to the report of a round, and those of the best
    round to the history. Called before the results folder, which writes both."""

    def __init__(self, folder: Path, history: History, evaluator: Evaluator, rounds: int) -> None:
        self._samples, self._history = Samples(folder, GENERATIONS), history
        self._evaluator, self._rounds = evaluator, rounds
        self._answered = -1  # the round whose answers are kept as the last

    def on_round(self, report: RoundReport, state: State) -> None:
        """Have the state of the first and of the last round answer."""
        if report.number and report.number != self._rounds and not report.stopped:
            return
        ratings = self._write(BEFORE if report.number == 0 else LAST, self._evaluator.exchanges(state))
        report.evaluated_by_server |= {f"test-{name}": value for name, value in ratings.items()}
        self._answered = report.number

    def on_end(self, error: BaseException | None) -> None:
        """Have the state of the best round answer, if another one was the last."""
        if error is not None or self._history.best is None:
            return
        if self._history.best["round"] == self._answered:
            self._samples.copy(LAST, BEST)
            return
        state, _ = checkpoint.load(self._samples.folder / "checkpoints" / checkpoint.BEST)
        self._history.best_ratings = self._write(BEST, self._evaluator.exchanges(state))

    def _write(self, which: str, found: list[Exchange]) -> dict[str, float]:
        """Keep the answers of a state; return their ratings."""
        rows = [{"prompt": one.prompt, "reference": one.reference} for one in found]
        self._samples.add(which, rows, [one.answer for one in found])
        return rated([one.answer for one in found], [one.reference for one in found])

"""Call the callbacks of a run. A callback that fails does not end the run, unless it is essential."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.types import State

LOG = logging.getLogger("flwr")


@contextmanager
def notified(callbacks: Sequence[Callback], facts: RunFacts) -> Iterator[None]:
    """Announce that a run starts, and how it ended when this block is left."""
    ended_by: BaseException | None = None
    try:
        _tell(callbacks, "on_start", lambda callback: callback.on_start(facts))
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        _tell(callbacks, "on_end", lambda callback: callback.on_end(ended_by))


def tell_scores(callbacks: Sequence[Callback], report: RoundReport, state: State) -> None:
    """Announce that a round is scored; a callback may then end the run."""
    _tell(callbacks, f"on_scores of round {report.number}", lambda callback: callback.on_scores(report, state))


def tell_round(callbacks: Sequence[Callback], report: RoundReport, state: State) -> None:
    """Announce that a round is finished."""
    _tell(callbacks, f"on_round of round {report.number}", lambda callback: callback.on_round(report, state))


def tell_checkpoint(callbacks: Sequence[Callback], report: RoundReport, state: State) -> None:
    """Announce that the state of a round is stored."""
    _tell(callbacks, f"on_checkpoint of round {report.number}", lambda callback: callback.on_checkpoint(report, state))


def _tell(callbacks: Sequence[Callback], hook: str, call: Callable[[Callback], None]) -> None:
    """Call one hook of every callback. Raises the first error of an essential one, after all were called."""
    failed: list[Exception] = []
    for callback in callbacks:
        try:
            call(callback)
        except Exception as error:  # whatever it raises, the run is more important
            if callback.essential:
                failed.append(error)
            else:
                said = "callback %s failed in %s, and the run continues: %s: %s"
                LOG.warning(said, callback.name, hook, type(error).__name__, error, exc_info=True)
    if failed:
        raise failed[0]

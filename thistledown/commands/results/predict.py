"""`thistledown predict`: the answers of a tuned model, printed, or written beside the rows of a file."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from task.data.raw import DataError, Raw, Table
from task.models.base import BaseError
from task.prediction.answer import Prediction
from task.schema import ConfigError
from task.storage.store import StoreError
from thistledown.predictor import Predictor
from thistledown.settings import pairs

ANSWER, PROBABILITY = "prediction", "probability"  # columns that are added
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
SHOWN = 5  # labels printed for a value
EVERY = 5.0  # seconds between lines of progress


def predict(
    results: Path,
    which: str,
    overrides: Sequence[str],
    values: Sequence[str],
    file: str | None,
    to: Path | None,
    say: Callable[[str], None],
) -> None:
    """Print the answers to `values`, or write those to the rows of `file` to `to`. A terminal gets texts as they are
    generated. Raises ConfigError."""
    if bool(values) == bool(file):
        raise ConfigError(["name texts or images to ask about, or a file of them by --file, and not both"])
    if to and not file:
        raise ConfigError(["--to is for --file; answers to single texts or images are printed"])
    quiet_libraries()
    try:
        predictor = Predictor(results, which, pairs(overrides))
        if file:
            _write(predictor, file, _place(Path(file), to), say)
        else:
            _print(predictor, values, say)
    except (DataError, BaseError, StoreError) as error:
        raise ConfigError([str(error)]) from error


def quiet_libraries() -> None:
    """Silence progress bars of loading and writing, and warnings of libraries about their own future."""
    import datasets
    import transformers

    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def write(text: str) -> None:
    """Print a piece of an answer at once."""
    print(text, end="", flush=True)


def _print(predictor: Predictor, values: Sequence[str], say: Callable[[str], None]) -> None:
    raw = predictor.rows_from(values)
    rows = predictor.asked(raw)
    if len(rows) < len(values):
        raise ConfigError([f"there is nothing to ask about in {values[min(set(range(len(values))) - set(rows))]!r}"])
    if predictor.kind.writes and sys.stdout.isatty():
        for row in rows:
            predictor.stream(raw, int(row), write)
            say("")
        return
    for value, prediction in zip(values, predictor.predict(raw, rows), strict=True):
        if not prediction.probabilities:
            say(prediction.answer if isinstance(prediction.answer, str) else f"{prediction.answer:.6g}")
            continue
        say(value)
        for label, probability in list(prediction.probabilities.items())[:SHOWN]:
            say(f"  {probability:.3f}  {label}")


def _write(predictor: Predictor, file: str, to: Path, say: Callable[[str], None]) -> None:
    raw = predictor.rows_of(file)
    there = [name for name in (ANSWER, PROBABILITY) if raw.has(name)]
    if there:
        raise ConfigError([f"{file} has a column '{there[0]}' already; rename it"])
    rows = predictor.asked(raw)
    answers: list[str | float | None] = [None] * len(raw)
    likely: list[float | None] = [None] * len(raw)
    for row, prediction in zip(rows, _counted(predictor.predict(raw, rows), len(rows)), strict=True):
        answers[row] = prediction.answer
        likely[row] = next(iter(prediction.probabilities.values()), None)
    columns: dict[str, Any] = {ANSWER: answers} | ({PROBABILITY: likely} if any(likely) else {})
    _save(_with(raw, columns), to)
    if bare := len(raw) - len(rows):
        say(f"{bare:,} of {len(raw):,} rows have nothing to ask about and no answer")
    say(f"{len(rows):,} answers in {to}")


def _place(file: Path, to: Path | None) -> Path:
    """Return where answers are written. Raises ConfigError for a format that is not written, and an existing file."""
    place = to or Path(f"{file.name.split('.')[0]}-predicted{file.suffix if file.suffix in FORMATS else '.csv'}")
    if place.suffix not in FORMATS:
        raise ConfigError([f"--to {place}: answers are written as {', '.join(FORMATS)}"])
    if place.exists():
        raise ConfigError([f"{place} exists; name another file by --to"])
    if not place.absolute().parent.is_dir():
        raise ConfigError([f"--to {place}: there is no folder {place.absolute().parent}"])
    return place


def _with(raw: Raw, columns: dict[str, Any]) -> Any:
    """Return the rows with more columns, as a `datasets.Dataset`."""
    import datasets

    if not isinstance(raw, Table):
        return datasets.Dataset.from_dict(columns)
    found = raw.dataset
    for name, values in columns.items():
        found = found.add_column(name, values)
    return found


def _save(dataset: Any, to: Path) -> None:
    draft = to.with_name(f".{to.name}.draft")
    if to.suffix == ".jsonl":
        dataset.to_json(draft, force_ascii=False)
    elif to.suffix == ".parquet":
        dataset.to_parquet(draft)
    else:
        dataset.to_csv(draft, sep="\t" if to.suffix == ".tsv" else ",", index=False)
    draft.replace(to)


def _counted(predictions: Iterator[Prediction], total: int) -> Iterator[Prediction]:
    """Yield the predictions, and say on the error stream how many there are and how long the others will take."""
    began = said = time.monotonic()
    for count, prediction in enumerate(predictions, start=1):
        yield prediction
        now = time.monotonic()
        if now - said > EVERY:
            said, left = now, (now - began) / count * (total - count)
            print(f"{count:,} of {total:,} rows, {left:.0f} s left", file=sys.stderr, flush=True)

"""What data is taken for: the task kind whose guess is surest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from task.config import Data
from task.data.guessing.columns import Column
from task.data.guessing.guess import LABEL, Guess, Sight, Sure
from task.kinds import registry
from task.kinds.base import Kind
from task.schema import ConfigError

HOW = "say what it is: --kind KIND, --text COLUMN, --label COLUMN"


@dataclass(frozen=True)
class Taken:
    """A kind, its columns, and the names of other kinds that recognise the same data."""

    kind: Kind
    guess: Guess
    others: tuple[str, ...]

    def inputs(self, columns: Sequence[Column]) -> list[Column]:
        """Return the columns of inputs."""
        names = [name for key, name in self.guess.columns.items() if key != LABEL]
        return [one for one in columns if one.name in names]

    def label(self, columns: Sequence[Column]) -> Column | None:
        """Return the column of labels; None: rows have none."""
        return next((one for one in columns if one.name == self.guess.columns.get(LABEL)), None)


def taken(columns: Sequence[Column], given: Mapping[str, str], wanted: str, place: str) -> Taken:
    """Return what these columns are taken for. `given` are columns that the user has named, by key; `wanted` is the
    name of a kind, "" for any; `place` is the name of the data.

    Raises ConfigError if no kind recognises them, or the one that is wanted cannot have them.
    """
    sight = Sight(tuple(columns), given)
    if wanted:
        kind = registry.load(wanted)
        return Taken(kind, kind.recognise(sight) or _as_given(kind, sight, place), ())
    found = [(kind, guess) for kind in registry.every() if (guess := kind.recognise(sight))]
    if not found:
        raise ConfigError([f"{place} is nothing that a task kind recognises: {_shown(columns)}; {HOW}"])
    first = max(found, key=lambda pair: _certainty(pair[1], given))
    return Taken(*first, tuple(kind.name for kind, guess in found if kind is not first[0] and guess.sure > Sure.LEFT))


def _certainty(guess: Guess, given: Mapping[str, str]) -> tuple[int, Sure]:
    """Return how many given columns a guess uses, and how sure it is."""
    return sum(guess.columns.get(key) == name for key, name in given.items()), guess.sure


def _as_given(kind: Kind, sight: Sight, place: str) -> Guess:
    """Return the columns that the user has named for a kind that recognises nothing here, or those of its defaults."""
    names = {key.removeprefix("data.").replace("-", "_"): name for key, name in sight.given.items()}
    data = Data(**{field: name for field, name in names.items() if field in Data.__dataclass_fields__})  # type: ignore[arg-type]
    keys = kind.columns(data)
    columns = {keys[name]: name for name in kind.required(data)}
    if kind.drawn_head:
        columns[LABEL] = data.label_column
    there = {one.name for one in sight.columns}
    if lacking := [key for key, name in columns.items() if name not in there]:
        asked = " ".join(f"{key}=..." for key in lacking)
        raise ConfigError(
            [
                f"{place} has no column that task.kind = '{kind.name}' is sure to mean; name it: -c \"{asked}\" "
                f"({_shown(sight.columns)})"
            ]
        )
    return Guess(columns, Sure.NAMES)


def _shown(columns: Sequence[Column]) -> str:
    return "its columns are " + ", ".join(f"{one.name!r} ({one.holds.value})" for one in columns)

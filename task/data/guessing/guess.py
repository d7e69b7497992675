"""Which columns of a table are whose: what a task kind takes rows for, if nobody has said it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from task.data.guessing.columns import LABELS, Column, Holds, usual
from task.data.raw import fold

TEXT, LABEL, IMAGE = "data.text-column", "data.label-column", "data.image-column"
LABEL_WORDS = (  # in names of columns that tell rows apart
    "topic", "category", "categories", "class", "label", "labels", "target", "diagnosis", "intent", "genre", "tag",
    "sentiment", "emotion", "outcome", "severity", "priority", "rating", "stars", "spam", "toxic", "type", "kind",
)  # fmt: skip

ENTITIES = ("ner", "entity", "entities")  # of labels of words, before others
VALUE_WORDS = ("score", "scores", "tags", "topics", "genres", "similarity", "toxicity")  # of numbers, and of lists


class Sure(IntEnum):
    """How sure a guess is. The kind with the surest guess gets the data."""

    LEFT = 1  # nothing else fits
    SHAPE = 2  # the values could be that
    NAMES = 3  # names or types of columns say it
    SAID = 4  # several names do, that nothing else has together


@dataclass(frozen=True)
class Guess:
    """The columns of a kind, by the keys that name them. `others` are columns that could be meant instead."""

    columns: Mapping[str, str]
    sure: Sure
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sight:
    """The columns of a table, without that of sites. `given` are columns that the user has named, by key; "" for
    none."""

    columns: tuple[Column, ...]
    given: Mapping[str, str]

    def named(self, key: str, *held: Holds) -> Column | None:
        """Return the column that is given for a key, else the one of such values that has a common name for it."""
        if key in self.given:
            return next((one for one in self.columns if one.name == self.given[key]), None)
        return next((one for one in usual(self.columns, key) if one.holds in held), None)

    def holding(self, *held: Holds) -> Column | None:
        """Return the first column of such values that is not given for anything."""
        return next((one for one in self._free() if one.holds in held), None)

    def text(self) -> Column | None:
        """Return the column of texts: by its name, else the one with the longest."""
        found = self.named(TEXT, Holds.TEXT)
        texts = [one for one in self._free() if one.holds is Holds.TEXT]
        return found or max(texts, key=lambda one: one.mean, default=None)

    def labels(self, but: Column) -> list[Column]:
        """Return the columns that can be labels, the likeliest first; only the given one, if it is given."""
        if LABEL in self.given:
            return [one for one in self.columns if one.name == self.given[LABEL]]
        found = [one for one in self._free() if one is not but and _tells_apart(one)]
        return sorted(found, key=_likely)

    def _free(self) -> list[Column]:
        """Return the columns that are not given for anything."""
        return [one for one in self.columns if one.name not in self.given.values()]


def by_label(kind_of: Callable[[Sight], Column | None], key: str, sight: Sight) -> Guess | None:
    """Return the guess of a kind whose rows are an input, which `key` names, and a label."""
    column = kind_of(sight)
    if column is None or not (labels := sight.labels(column)):
        return None
    label, *others = labels
    said = LABEL in sight.given or label.called(LABEL_WORDS) or label.holds is Holds.CLASS
    more = {LABEL: tuple(one.name for one in others)} if others else {}
    return Guess({key: column.name, LABEL: label.name}, Sure.NAMES if said else Sure.SHAPE, more)


def by_values(sight: Sight, text: Column | None, held: Holds, sure: Sure = Sure.SHAPE) -> Guess | None:
    """Return the guess of a kind whose rows are an input and such values in place of a label. Their column must be
    given, or have a name for labels."""
    if LABEL in sight.given:
        found = [one for one in sight.columns if one.name == sight.given[LABEL] and one.holds is held]
    else:
        found = [one for one in sight.columns if one.holds is held and one is not text and _named_for_labels(one)]
        found.sort(key=lambda one: not one.called(ENTITIES))
    if text is None or not found:
        return None
    others = tuple(one.name for one in found[1:])
    return Guess({TEXT: text.name, LABEL: found[0].name}, sure, {LABEL: others} if others else {})


def literally(columns: Sequence[Column | None], *names: str) -> bool:
    """Return whether the columns have exactly these names, in any case."""
    return [column and fold(column.name) for column in columns] == list(names)


def _named_for_labels(column: Column) -> bool:
    return bool(usual([column], LABEL)) or column.called(LABEL_WORDS + VALUE_WORDS)


def _tells_apart(column: Column) -> bool:
    """Return whether the values can be labels. A column with a common name for labels may have few rows a label."""
    few = bool(usual([column], LABEL)) and column.holds in LABELS and 2 <= column.distinct <= column.filled // 2
    return column.repeats or few


def _likely(column: Column) -> tuple[bool, bool, int, int]:
    return (
        not usual([column], LABEL),
        not column.called(LABEL_WORDS),
        LABELS.index(column.holds) if column.holds is not Holds.CLASS else -1,
        column.distinct,
    )

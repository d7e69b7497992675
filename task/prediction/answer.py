"""The answer of a tuned model to one row."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prediction:
    """The answer to one row, a text or a number, and for a classifier the probability of every label, the likeliest
    first."""

    answer: str | float
    probabilities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """A prompt, what the row has as its answer (`reference`), and what the model wrote."""

    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True)
class Classified:
    """A row, its label, and the likeliest label by a model. `row` is a text, or a PNG image as a data URL."""

    row: str
    label: str
    answer: str
    probability: float


NOTHING = Prediction("")  # of a row that has no input

"""The embedded data set: 1,797 scans of handwritten digits that come with scikit-learn.

The embedded base model is trained on a public, upright part. The private, validation and test parts are rotated, so
that there is something to tune. The split belongs to the data: no seed changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from task.data.raw import Arrays, Raw
from task.data.request import Reading
from task.data.sources.base import Place, Source

PARTS = {"public": 600, "train": 750, "validation": 150, "test": 297}
WHITE = 16
DIGITS_STRETCH = 15
_SEED = 20240229


@dataclass(frozen=True)
class Digits(Source):
    """The embedded digits, scaled from 0..16 to 0..240 so that resizing keeps their shades."""

    keywords = ("digits",)

    @classmethod
    def open(cls, place: Place) -> "Digits":
        """Return the digits."""
        return cls()

    @property
    def name(self) -> str:
        """Return its name in errors."""
        return "the embedded digits"

    def stamp(self) -> object:
        """Return a constant: the digits do not change."""
        return "digits, first edition"

    def splits(self) -> Sequence[str]:
        """Return the names of their parts."""
        return tuple(PARTS)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return a part."""
        images, labels = digits_part(split)
        return Arrays(f"{self.name} ({split})", images * np.uint8(DIGITS_STRETCH), labels)


def digits_part(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (N, 1, 8, 8) with values from 0 to 16, and labels (N,). KeyError for a name not in PARTS."""
    sizes = list(PARTS.values())
    place = list(PARTS).index(name) if name in PARTS else None
    if place is None:
        raise KeyError(f"the digits have no part '{name}', only {', '.join(PARTS)}")
    images, labels = _scans()
    first = sum(sizes[:place])
    rows = np.sort(_balanced_order(labels)[first : first + sizes[place]])
    images = images[rows]
    if name != "public":
        images = np.rot90(images, axes=(1, 2))
    return np.ascontiguousarray(images[:, None]), labels[rows]


def _scans() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all images (N, 8, 8) and labels (N,), read from the file of `sklearn.datasets.load_digits`. Importing
    scikit-learn for it would take a second or two in every process of a run."""
    (package,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    rows = np.loadtxt(Path(package) / "datasets" / "data" / "digits.csv.gz", dtype=np.int64, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8).astype(np.uint8), rows[:, -1]


def _balanced_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a permutation in which every section has the classes in the proportions of the whole."""
    random = np.random.RandomState(_SEED)  # its stream is frozen in every numpy version
    spread = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        spread[members] = (np.arange(len(members)) + random.random_sample(len(members))) / len(members)
    return np.argsort(spread, kind="stable")

"""Arrays of images and labels in a .npz file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from task.data.raw import Arrays, DataError, Raw
from task.data.request import Reading
from task.data.sources.base import Order, Place, Source, stamps
from task.data.tables.decoding import WRONG_KIND, hidden


@dataclass(frozen=True)
class Npz(Source):
    """Arrays named x_<split> and y_<split>, or `images` and `labels`, which are the split `train`."""

    suffixes = (".npz",)
    order = Order.FILE

    path: Path

    @classmethod
    def knows(cls, folder: Path) -> bool:
        """Return whether it contains exactly one such file."""
        return len(_inside(folder)) == 1

    @classmethod
    def open(cls, place: Place) -> "Npz":
        """Return the file, or the only one in a folder."""
        assert place.path is not None
        return cls(_inside(place.path)[0] if place.path.is_dir() else place.path)

    @property
    def name(self) -> str:
        """Return its name in errors."""
        return str(self.path)

    def stamp(self) -> object:
        """Return name, size and time of the file."""
        return stamps([self.path])

    def splits(self) -> Sequence[str]:
        """Return the splits that have both arrays."""
        return tuple(self._keys)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the arrays of a split. Raises DataError for arrays of Python objects, which only unpickling could
        read, and unless there is one label for every image."""
        place, (images, labels) = f"{self.path} ({split})", self._keys[split]
        with self._open() as arrays:
            try:
                pixels, targets = arrays[images], arrays[labels]
            except ValueError as error:
                raise DataError(f"{self.path} cannot be read: {error}") from error
        if targets.ndim != 1 or len(pixels) != len(targets):
            shapes = f"'{images}' {pixels.shape} and '{labels}' {targets.shape}"
            raise DataError(f"{place}: {shapes} do not have one label for every image")
        return Arrays(place, pixels, targets)

    @cached_property
    def _keys(self) -> dict[str, tuple[str, str]]:
        with self._open() as arrays:
            names = list(arrays.files)
        pairs = {name[2:]: (name, f"y_{name[2:]}") for name in names if name.startswith("x_")}
        pairs = {split: pair for split, pair in pairs.items() if pair[1] in names}
        if not pairs and {"images", "labels"} <= set(names):
            pairs = {"train": ("images", "labels")}
        if not pairs:
            have = ", ".join(map(repr, names)) or "no arrays"
            raise DataError(f"{self.path} has {have}; it needs x_train and y_train, or images and labels")
        return pairs

    def _open(self) -> Any:
        try:
            opened = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self.path} is not an npz file: {error}", WRONG_KIND) from error
        if not hasattr(opened, "files"):
            raise DataError(f"{self.path} is not an npz file, but a single array")
        return opened


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npz") if not hidden(path.name))

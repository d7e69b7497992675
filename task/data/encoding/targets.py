"""Texts with numbers to learn: the part of the encoding that does not depend on what the numbers are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.texts import TextEncoder
from task.data.raw import Raw
from task.data.rows import Targets, mapped

EDITION = 1  # version of the stored format


@dataclass(frozen=True)
class TargetEncoder(ABC):
    """An encoder of texts, as `texts` encodes them, with one or more numbers for each. A subclass defines `values`; its
    fields are part of the recipe."""

    texts: TextEncoder
    column: str

    @abstractmethod
    def values(self, raw: Raw, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the numbers (N,) or (N, K) of these rows. Raises DataError."""

    def recipe(self) -> object:
        """Return everything but the rows that the inputs depend on."""
        own = [str(getattr(self, field.name)) for field in fields(self) if field.name != "texts"]
        return [EDITION, type(self).__qualname__, own, self.texts.recipe()]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices. Raises DataError."""
        np.save(folder / f"{part}-values.npy", self.values(raw, rows))
        return self.texts.write(folder, part, raw, rows)

    def read(self, folder: Path, part: str) -> Targets:
        """Return the rows that `write` prepared, mapped into memory."""
        return Targets(self.texts.read(folder, part), mapped(folder / f"{part}-values.npy"))

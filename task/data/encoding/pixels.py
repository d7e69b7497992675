"""From an image to numbers: the values that an image processor must have, and the errors for missing ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.raw import DataError

MODES = {1: "L", 3: "RGB"}
NAMING = ("image_processor_type", "feature_extractor_type")
IDLE = {  # keys without effect on pixels
    *NAMING, "processor_class", "_valid_processor_keys", "return_tensors", "data_format", "input_data_format", "device",
    "disable_grouping", "default_to_square", "image_seq_length", "do_reduce_labels", "use_fast", "backend",
}  # fmt: skip


class NoImage(ValueError):
    """A value that is no valid image. The problem is in words that depend on no value; `seen` adds the value."""

    def __init__(self, problem: str, seen: str = "") -> None:
        super().__init__(problem)
        self.seen = seen


@dataclass(frozen=True)
class Fitting:
    """The size of prepared images (C, H, W) uint8, and how to fit them; a model sees (bytes * scale - mean) / std."""

    height: int
    width: int
    channels: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Callable[[Any], NDArray[np.uint8]]  # takes an image of the right mode


def understood(found: Mapping[str, Any], known: set[str], path: Path) -> None:
    """Raise DataError for unknown keys with a value."""
    strange = sorted(key for key, value in found.items() if key not in known and value not in (None, False))
    if strange:
        cure = "take them out if they change no pixels"
        problem = f"its image processor has {len(strange)} unknown keys; {cure}"
        raise DataError(f"{path}: unknown keys: {', '.join(strange)[:300]}; {cure}", f"the base: {problem}")


def by_channel(numbers: Any, channels: int, path: Path) -> tuple[float, ...]:
    listed = isinstance(numbers, list | tuple)
    found = [finite(number, path) for number in (numbers if listed else [numbers])]
    if len(set(found)) == 1:
        return tuple(found[:1] * channels)
    if len(found) != channels:
        public = f"the base's {path.name} has means or deviations for another number of channels"
        raise DataError(f"{path}: {len(found)} means or deviations for {channels} channels", public)
    return tuple(found)


def finite(value: Any, path: Path) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise unusable(path)
    return float(value)


def unusable(path: Path) -> DataError:
    return fault(path, "it does not say how pixels become numbers (rescale_factor, image_mean, image_std, resample)")


def fault(path: Path, problem: str, seen: str = "") -> DataError:
    return DataError(f"{path}: {problem}{seen}", f"the base's {path.name}: {problem}")

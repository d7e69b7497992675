"""Images: from whatever a row holds to bytes of the size and channels that the model wants."""

import io
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.contents import CONFIG, listed, settings
from task.raw import Arrays, DataError, Raw, Table
from task.rows import Pixels, mapped
from task.sources import DIGITS_STRETCH

PROCESSOR = "preprocessor_config.json"
MODES = {1: "L", 3: "RGB"}
RESAMPLING = range(6)  # Pillow's filters
LARGEST = 4096  # pixels of an edge
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none whose reader starts other programs


class NoImage(ValueError):
    """A value that is no image of the right kind, in words that depend on no value; `seen` goes on with what it is."""

    def __init__(self, problem: str, seen: str = "") -> None:
        super().__init__(problem)
        self.seen = seen


@dataclass(frozen=True)
class ImageEncoder:
    """How the images of `column` become pixels; the sizes and numbers are the base model's."""

    column: str
    height: int
    width: int
    channels: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    @classmethod
    def of(cls, base: Path, column: str, digits: bool = False) -> "ImageEncoder":
        """What the model in folder `base` wants. Raises DataError where its files do not say, BaseError where they are
        not to be read."""
        files = listed(base)
        model, processor = (settings(files[name]) if name in files else {} for name in (CONFIG, PROCESSOR))
        path = base / PROCESSOR
        channels = model.get("num_channels", 3)
        if not isinstance(channels, int) or channels not in MODES:
            public = f"the base's {CONFIG} wants images of other than 1 or 3 channels"
            raise DataError(f"{base / CONFIG}: images of {channels!r:.40} channels; 1 and 3 are known", public)
        size = model.get("image_size") or processor.get("crop_size") or processor.get("size")
        height, width = _height_width(size, base)
        normalised, rescaled = processor.get("do_normalize", True), processor.get("do_rescale", True)
        neutral = {"image_mean": 0.5, "image_std": 0.5} if digits else {"image_mean": 0.0, "image_std": 1.0}
        mean, std = (
            _by_channel(processor.get(key, neutral[key]) if normalised else value, channels, path)
            for key, value in (("image_mean", 0.0), ("image_std", 1.0))
        )
        scale = _number(processor.get("rescale_factor", 1 / 255), path) if rescaled else 1.0
        if digits:  # of 0 to 16, whatever other images of this model are
            scale = 1 / (16 * DIGITS_STRETCH)
        resample = processor.get("resample", 2)
        if resample not in RESAMPLING or not all(std):
            raise _unusable(path)
        return cls(column, height, width, channels, scale, mean, std, int(resample))

    def recipe(self) -> object:
        """All that the prepared pixels depend on, beside the rows."""
        return asdict(self)

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return what is to be said of them.

        Raises DataError for the first one that is no image."""
        shape = (len(rows), self.channels, self.height, self.width)
        file = folder / f"{part}-pixels.npy"
        pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        for position, (row, value) in enumerate(zip(rows, self._values(raw, rows), strict=True)):
            try:
                pixels[position] = self._fitted(_image(value, raw.folder if isinstance(raw, Table) else None))
            except NoImage as error:
                raise raw.fault(int(row), self.column, str(error), error.seen) from error
        pixels.flush()
        return ()

    def read(self, folder: Path, part: str) -> Pixels:
        """What `write` prepared."""
        return Pixels(mapped(folder / f"{part}-pixels.npy"), self.scale, self.mean, self.std)

    def _values(self, raw: Raw, rows: NDArray[np.int64]) -> Iterator[object]:
        if isinstance(raw, Arrays):
            return (raw.images[row] for row in rows)
        return raw.values(self.column, rows)

    def _fitted(self, image: Any) -> NDArray[np.uint8]:
        """(C, H, W)"""
        mode = MODES[self.channels]
        if image.mode != mode:
            image = image.convert(mode)
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), self.resample)
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _height_width(size: Any, base: Path) -> tuple[int, int]:
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    if isinstance(size, int):
        size = [size, size]
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(edge, int) for edge in size):
        problem = "does not say how large an image is (image_size)"
        raise DataError(f"{base / CONFIG} {problem}", f"the base's {CONFIG} {problem}")
    if not all(0 < edge <= LARGEST for edge in size):
        limit = f"at most {LARGEST} pixels a side are read"
        message = f"{base / CONFIG}: images of {size[0]!s:.20} x {size[1]!s:.20}; {limit}"
        raise DataError(message, f"the base's {CONFIG} wants images that are too large, or of no size; {limit}")
    return size[0], size[1]


def _by_channel(numbers: Any, channels: int, path: Path) -> tuple[float, ...]:
    found = [_number(number, path) for number in (numbers if isinstance(numbers, list) else [numbers])]
    if len(set(found)) == 1:
        return tuple(found[:1] * channels)
    if len(found) != channels:
        public = f"the base's {path.name} has means or deviations for another number of channels"
        raise DataError(f"{path}: {len(found)} means or deviations for {channels} channels", public)
    return tuple(found)


def _number(value: Any, path: Path) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _unusable(path)
    return float(value)


def _unusable(path: Path) -> DataError:
    problem = "it does not say how pixels become numbers (rescale_factor, image_mean, image_std, resample)"
    return DataError(f"{path}: {problem}", f"the base's {path.name}: {problem}")


def _image(value: object, folder: Path | None) -> Any:
    """A PIL image of bytes, of a path, of {"bytes", "path"}, or of nested lists or an array."""
    from PIL import Image

    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes") or (Path(path) if path else None)
    if value is None or (isinstance(value, str | bytes) and not value):
        raise NoImage("the image is missing")
    if isinstance(value, str):
        if folder is None:
            raise NoImage("a path, but this data has no folder of its own", f": {value!r:.80}")
        value = Path(value)
    if isinstance(value, Path):
        value = (folder / value) if folder else value
        if not value.is_file():
            raise NoImage("there is no image file", f" {value}")
        value = value.read_bytes()
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, list | np.ndarray):
        return Image.fromarray(_grid(value))
    raise NoImage("no image", f", but {value!r:.60}")


def _decoded(content: bytes) -> Any:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"no readable image ({', '.join(FORMATS)})"
        raise NoImage(problem, f", but {len(content)} bytes: {error}") from error
    if image.mode.startswith(("I", "F")):
        raise NoImage("only images of 8 bits a channel can be used", f", and this one is of mode {image.mode}")
    return image


def _grid(value: Any) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) from nested lists or an array, which may also be (1 or 3, H, W) or (H, W, 1)."""
    try:
        grid = np.asarray(value)
    except ValueError:
        raise NoImage("rows of pixels that differ in length") from None
    if grid.dtype.kind not in "iufb" or (grid.size and not (grid.min() >= 0 and grid.max() <= 255)):
        raise NoImage("pixels must be numbers from 0 to 255")
    whole = grid.astype(np.uint8)
    if grid.dtype.kind == "f" and (0 < grid.max(initial=0) <= 1 or not (whole == grid).all()):
        raise NoImage("pixels must be whole numbers from 0 to 255, not fractions")
    if whole.ndim == 3 and whole.shape[-1] not in MODES and whole.shape[0] in MODES:
        whole = whole.transpose(1, 2, 0)
    if whole.ndim == 3 and whole.shape[-1] == 1:
        whole = whole[..., 0]
    if not whole.size or whole.ndim not in (2, 3) or (whole.ndim == 3 and whole.shape[-1] != 3):
        raise NoImage("an image has shape (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels", f", not {grid.shape}")
    return np.ascontiguousarray(whole)

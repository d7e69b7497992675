"""Images: from the values of rows to bytes of the size and channels that the model needs."""

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.library_processor import Library
from task.data.encoding.pixels import MODES, NoImage
from task.data.encoding.processors import Plain, look_of
from task.data.raw import Arrays, DataError, Raw, Table
from task.data.rows import Pixels, mapped
from task.files.pointer import CURE, FIRST

__all__ = ["DataError", "ImageEncoder", "NoImage"]

EDITION = 2  # version of the encoding of images
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # formats whose readers start no other program
ORIENTATION = 0x0112  # the EXIF tag of the camera's orientation
UPRIGHT = (
    None,
    None,
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)
NUMBERS = "pixels.json"


@dataclass(frozen=True)
class ImageEncoder:
    """An encoder of the images of `column` as pixels, by the base's own processor."""

    column: str
    look: Plain | Library

    @classmethod
    def of(cls, base: Path, column: str, digits: bool = False) -> "ImageEncoder":
        """Return the encoder for the model in folder `base`. Raises DataError if its files do not describe one,
        BaseError if they may not be read."""
        return cls(column, look_of(base, digits))

    def recipe(self) -> object:
        """Return everything but the rows that the prepared pixels depend on."""
        return [EDITION, self.column, self.look.recipe()]

    def write(self, folder: Path, part: str, raw: Raw, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Prepare these rows; return notices on them.

        Raises DataError for the first value that is no image."""
        look = self.look.fitting()
        shape = (len(rows), look.channels, look.height, look.width)
        file = folder / f"{part}-pixels.npy"
        pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        for position, (row, value) in enumerate(zip(rows, self._values(raw, rows), strict=True)):
            try:
                image = image_of(value, raw.folder if isinstance(raw, Table) else None)
                pixels[position] = look.fit(
                    image if image.mode == MODES[look.channels] else image.convert(MODES[look.channels])
                )
            except NoImage as error:
                raise raw.fault(int(row), self.column, str(error), error.seen) from error
        pixels.flush()
        numbers = {"scale": look.scale, "mean": look.mean, "std": look.std}
        (folder / NUMBERS).write_text(json.dumps(numbers))
        return ()

    def read(self, folder: Path, part: str) -> Pixels:
        """Return the pixels that `write` prepared."""
        numbers = json.loads((folder / NUMBERS).read_text())
        pixels = mapped(folder / f"{part}-pixels.npy")
        return Pixels(pixels, numbers["scale"], tuple(numbers["mean"]), tuple(numbers["std"]))

    def _values(self, raw: Raw, rows: NDArray[np.int64]) -> Iterator[object]:
        if isinstance(raw, Arrays):
            return (raw.images[row] for row in rows)
        return raw.values(self.column, rows)


def image_of(value: object, folder: Path | None) -> Any:
    """Return a PIL image from bytes, a path (relative to `folder`), {"bytes", "path"}, nested lists or an array. Raises
    NoImage."""
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
        try:
            return _decoded(value.read_bytes())
        except NoImage as error:
            raise NoImage(str(error), f"{error.seen}: {value}") from error
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, list | np.ndarray):
        return Image.fromarray(_grid(value))
    raise NoImage("no image", f", but {value!r:.60}")


def _decoded(content: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    if content.startswith(FIRST):
        raise NoImage(CURE)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"no readable image ({', '.join(FORMATS)})"
        said = "of another kind" if isinstance(error, UnidentifiedImageError) else str(error)
        raise NoImage(problem, f", but {len(content)} bytes: {said}") from error
    if image.mode.startswith(("I", "F")):
        raise NoImage("only images of 8 bits a channel can be used", f", and this one is of mode {image.mode}")
    return _upright(image)


def _upright(image: Any) -> Any:
    """Return the image rotated by its EXIF orientation, as viewers show it."""
    from PIL import Image

    try:
        turned = image.getexif().get(ORIENTATION)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return image  # invalid EXIF: viewers show such images unrotated
    method = UPRIGHT[turned] if isinstance(turned, int) and 1 < turned < len(UPRIGHT) else None
    return image.transpose(getattr(Image.Transpose, method)) if method else image


def _grid(value: Any) -> NDArray[np.uint8]:
    """Return (H, W) or (H, W, 3) from nested lists or an array, which may also be (1 or 3, H, W) or (H, W, 1)."""
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

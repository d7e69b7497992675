"""The image processors of transformers, used for a base.

Each is tested on two images. A processor is refused if it does more than resize, crop or flip images and apply the same
scale, mean and deviation to every pixel.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.pixels import IDLE, Fitting, NoImage, by_channel, fault, finite, understood, unusable
from task.data.raw import DataError
from task.data.sources.digits import DIGITS_STRETCH
from task.files.library_copy import shown

LONGEST = 20  # largest ratio of an image's sides if its proportions are kept
NUMBERS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
PROBES = ((37, 53), (61, 29))  # width and height of the test images for a processor


@dataclass(frozen=True)
class Library:
    """A transformers processor with the settings of the base in folder `base`. `size` is the model's image size."""

    base: Path
    path: Path
    kind: str
    found: str  # the settings, as JSON
    channels: int
    size: tuple[int, int] | None
    digits: bool

    def recipe(self) -> object:
        """Return everything that the bytes and numbers depend on."""
        return [self.kind, self.found, self.channels, self.size, self.digits]

    def fitting(self) -> Fitting:
        """Return the processing of every image. Raises DataError for a processor that cannot be used."""
        try:
            processor = self._made()
            return self._checked(processor)
        except DataError:
            raise
        except Exception as error:
            problem = f"its image processor cannot be used here ({type(error).__name__})"
            raise fault(self.path, problem, f": {error!s:.300}") from error

    def _made(self) -> Any:
        from transformers import AutoImageProcessor
        from transformers.utils import logging

        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            with shown(self.base) as folder:
                processor = AutoImageProcessor.from_pretrained(
                    folder, backend="pil", local_files_only=True, trust_remote_code=False
                )
        finally:
            logging.set_verbosity(level)
        understood(json.loads(self.found), {*processor.valid_kwargs.__annotations__, *IDLE}, self.path)
        if self.channels == 1 and processor.do_convert_rgb:
            raise fault(self.path, "it makes colour images (do_convert_rgb), but the model has one channel")
        return processor

    def _checked(self, processor: Any) -> Fitting:
        """Return the processing, after a test of the processor on images of two shapes."""
        values = {key: getattr(processor, key, None) for key in NUMBERS}
        means = by_channel(values["image_mean"] if values["do_normalize"] else 0.0, self.channels, self.path)
        stds = by_channel(values["image_std"] if values["do_normalize"] else 1.0, self.channels, self.path)
        scale = finite(values["rescale_factor"], self.path) if values["do_rescale"] else 1.0
        own = {"return_tensors": "np", "do_convert_rgb": False}
        own |= {"image_mean": list(means), "image_std": list(stds)} if values["do_normalize"] else {}
        bare = own | {"do_rescale": False, "do_normalize": False}
        if values["do_rescale"] and getattr(processor, "rescale_offset", False):
            means = tuple(mean + 1 for mean in means)
        if getattr(processor, "include_top", False):  # a second division by the deviation
            again = by_channel(processor.image_std, self.channels, self.path)
            stds, bare = tuple(std * more for std, more in zip(stds, again)), bare | {"include_top": False}
            own |= {"image_std": list(again)}
        if not all(stds):
            raise unusable(self.path)

        def fit(image: Any) -> NDArray[np.uint8]:
            if max(image.size) > LONGEST * min(image.size):
                raise NoImage(f"it is more than {LONGEST} times longer than wide, or wider than long")
            found = self._pixels(processor(images=image, **bare))
            if found.shape[1:] != (height, width):
                raise NoImage(f"the base takes only images of {width} x {height} pixels, and does not resize")
            return found.astype(np.uint8)

        images = [_random(size, self.channels) for size in PROBES]
        kept = [self._pixels(processor(images=image, **bare)) for image in images]
        height, width = self._target(processor, kept, images)
        for image, found in zip(images, kept):
            numbers = self._pixels(processor(images=image, **own))
            made = (found * scale - np.reshape(means, (-1, 1, 1))) / np.reshape(stds, (-1, 1, 1))
            whole = np.array_equal(found, found.astype(np.uint8))
            if not whole or numbers.shape != made.shape or not np.allclose(numbers, made, atol=1e-3, rtol=1e-3):
                raise fault(self.path, "it does more than resize, crop, rescale and normalise pixels")
        if self.digits:
            scale *= 255 / (16 * DIGITS_STRETCH)
        return Fitting(height, width, self.channels, scale, means, stds, fit)

    def _pixels(self, made: Mapping[str, Any]) -> NDArray[Any]:
        """Return the pixels (C, H, W) of a processor's output."""
        if set(made) != {"pixel_values"} or np.ndim(made["pixel_values"]) != 4 or len(made["pixel_values"]) != 1:
            raise fault(self.path, "it makes other inputs than pixels of one image, such as patches of any number")
        found = np.asarray(made["pixel_values"][0])
        if found.shape[0] != self.channels:
            raise fault(self.path, f"it makes images of {found.shape[0]} channels, and the model has {self.channels}")
        return found

    def _target(self, processor: Any, kept: list[NDArray[Any]], images: list[Any]) -> tuple[int, int]:
        """Return the height and width of every image; the model's own if nothing is resized."""
        sizes = {found.shape[1:] for found in kept}
        if len(sizes) == 1:
            height, width = sizes.pop()
            return int(height), int(width)
        as_they_are = all(found.shape[1:] == image.size[::-1] for found, image in zip(kept, images))
        if as_they_are and self.size:
            return self.size
        raise fault(
            self.path,
            "it keeps the proportions of images, so that they differ in size and make no batch; "
            "add do_center_crop and crop_size, or a size with height and width",
        )


def _random(size: tuple[int, int], channels: int) -> Any:
    from PIL import Image

    width, height = size
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)
    return Image.fromarray(values if channels == 3 else values[..., 0])

"""A base's own image processor, up to the stored bytes; the numbers are computed in a batch.

The plain one (ViT's: resize to height and width) is implemented here, without a library that takes seconds to import.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.encoding.library_processor import Library
from task.data.encoding.pixels import IDLE, MODES, NAMING, Fitting, by_channel, fault, finite, understood, unusable
from task.data.raw import DataError
from task.data.sources.digits import DIGITS_STRETCH
from task.files.contents import CONFIG, listed, settings

PROCESSOR, NESTED = "preprocessor_config.json", "processor_config.json"
RESAMPLING = range(6)  # Pillow's filters
LARGEST = 4096  # largest side in pixels, and the limit of all other numbers
LEAST = 0.5  # smallest crop_pct: below it the resize before the crop is far larger than the image
PLAIN = (None, "vit", "thistledown-perceptron")  # model types that use the plain processor by default
PLAIN_TYPES = ("ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor")
TYPE = re.compile(r"\w{1,60}(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
DONE = ("do_resize", "do_rescale", "do_normalize")  # the steps of the plain processor
MORE = ("do_center_crop", "do_pad", "crop_size", "pad_size")  # steps that it does not have
UNDERSTOOD = {*DONE, "size", "resample", "rescale_factor", "image_mean", "image_std", "do_convert_rgb", *MORE}
SAVE = "save the base's own into its folder, with AutoImageProcessor.from_pretrained(...).save_pretrained()"


@dataclass(frozen=True)
class Plain:
    """A resize to height and width, then scale, mean and deviation."""

    height: int
    width: int
    channels: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    def recipe(self) -> object:
        """Return everything that the bytes and numbers depend on."""
        return asdict(self)

    def fitting(self) -> Fitting:
        """Return the processing of every image."""
        return Fitting(self.height, self.width, self.channels, self.scale, self.mean, self.std, self._fit)

    def _fit(self, image: Any) -> NDArray[np.uint8]:
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), self.resample)
        return _first(np.asarray(image))


def look_of(base: Path, digits: bool = False) -> Plain | Library:
    """Return the image processor of the model in folder `base`. Raises DataError if its files do not describe one,
    BaseError if they may not be read."""
    files = listed(base)
    model = settings(files[CONFIG]) if CONFIG in files else {}
    path, found = _processor(files, base, digits)
    vision = model.get("vision_config")
    model = {**(vision if isinstance(vision, dict) else {}), **model}
    channels = model.get("num_channels", 3)
    if not isinstance(channels, int) or channels not in MODES:
        public = f"the base's {CONFIG} wants images of other than 1 or 3 channels"
        raise DataError(f"{base / CONFIG}: images of {channels!r:.40} channels; 1 and 3 are known", public)
    named = next((found[key] for key in NAMING if found.get(key) is not None), None)
    _check_numbers(found, path)
    size = found.get("size") or model.get("image_size")
    if (named in PLAIN_TYPES or (named is None and model.get("model_type") in PLAIN)) and _is_plain(found, size):
        understood(found, UNDERSTOOD | IDLE, path)
        return _plain(found, size, channels, path, base, digits)
    if named is not None and (not isinstance(named, str) or not TYPE.fullmatch(named)):
        raise fault(path, "its image_processor_type is the name of no image processor", f": {named!r:.80}")
    own = model.get("image_size")
    target = _height_width(own, base) if isinstance(own, int | list) else None
    kind = f"{named} for {model.get('model_type')}"
    return Library(base, path, kind, json.dumps(found, sort_keys=True), channels, target, digits)


def _processor(files: Mapping[str, Path], base: Path, digits: bool) -> tuple[Path, dict[str, Any]]:
    """Return the settings file of the image processor, and the settings. Raises DataError if there is none."""
    nested = settings(files[NESTED]).get("image_processor") if NESTED in files else None
    if isinstance(nested, dict):
        return base / NESTED, nested
    if PROCESSOR in files:
        return base / PROCESSOR, settings(files[PROCESSOR])
    if digits:  # their scale is known
        return base / PROCESSOR, {}
    problem = f"the base has no {PROCESSOR}, which says how pixels become numbers"
    raise DataError(f"{base}: {problem}; {SAVE}", f"{problem}; {SAVE}")


def _is_plain(found: Mapping[str, Any], size: Any) -> bool:
    sized = not isinstance(size, dict) or size.keys() == {"height", "width"}
    return (
        sized and found.get("do_resize", True) is True and not found.get("do_center_crop") and not found.get("do_pad")
    )


def _plain(found: Mapping[str, Any], size: Any, channels: int, path: Path, base: Path, digits: bool) -> Plain:
    height, width = _height_width(size, base)
    normalised, rescaled = found.get("do_normalize", True), found.get("do_rescale", True)
    mean, std = (
        by_channel(found.get(key, 0.5) if normalised else value, channels, path)
        for key, value in (("image_mean", 0.0), ("image_std", 1.0))
    )
    scale = finite(found.get("rescale_factor", 1 / 255), path) if rescaled else 1.0
    if digits:  # values from 0 to 16, whatever the model's other images have
        scale = 1 / (16 * DIGITS_STRETCH)
    resample = found.get("resample", 2)
    if resample not in RESAMPLING or not all(std):
        raise unusable(path)
    return Plain(height, width, channels, scale, mean, std, int(resample))


def _check_numbers(found: Mapping[str, Any], path: Path) -> None:
    """Raise DataError for numbers beyond any image size, before anything of that size is made."""
    share = found.get("crop_pct")
    small = isinstance(share, int | float) and not share >= LEAST
    if small or any(not abs(number) <= LARGEST for number in _numbers(found)):
        raise fault(path, f"numbers above {LARGEST}, or a crop_pct below {LEAST}, are not read")


def _numbers(found: Any) -> Iterator[float]:
    if isinstance(found, int | float):
        yield found
    for value in found.values() if isinstance(found, Mapping) else found if isinstance(found, list) else ():
        yield from _numbers(value)


def _first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels (C, H, W) from (H, W) or (H, W, C)."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _height_width(size: Any, base: Path) -> tuple[int, int]:
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
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

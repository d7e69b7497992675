"""Image classification: images with one label each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from task.config import Data
from task.data.encoding.images import ImageEncoder
from task.data.guessing.columns import Holds
from task.data.guessing.guess import IMAGE, Guess, Sight, by_label
from task.data.raw import Raw
from task.data.sources.base import Source
from task.data.sources.digits import Digits
from task.kinds.base import Encoder, Kind

CHECKS = [[0, 255], [255, 0]]  # pixels of an image


@dataclass(frozen=True)
class ImageClassification(Kind):
    """Image classification. The base's own processor prepares the images; the head has one output per label."""

    auto_class = "AutoModelForImageClassification"
    peft_auto_class = "AutoPeftModel"
    peft_task_type = ""
    pipeline = "image-classification"
    images = True
    input_noun = "an image"
    begin_with: ClassVar[Mapping[str, object]] = {
        "model.name": "google/vit-base-patch16-224-in21k",
        "num-server-rounds": 10,
        "learning-rate": 0.005,
        "batch-size": 16,
    }

    def columns(self, data: Data) -> dict[str, str]:
        """Return the column of images."""
        return {data.image_column: "data.image-column"}

    def recognise(self, sight: Sight) -> Guess | None:
        """Return a column of images, and one of few different values."""
        return by_label(lambda own: own.named(IMAGE, Holds.IMAGE) or own.holding(Holds.IMAGE), IMAGE, sight)

    def missing(self, raw: Raw, column: str) -> NDArray[np.bool_]:
        """Return which rows have no image, without reading any."""
        return raw.missing(column)

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder that resizes and scales as the base's processor does."""
        return ImageEncoder.of(base, data.image_column, isinstance(source, Digits))

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return two small images, of the first and the last label."""
        return {data.image_column: [CHECKS, CHECKS], data.label_column: [data.labels[0], data.labels[-1]]}

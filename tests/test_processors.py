"""Images as the base's own processor has them: a model sees the pixels of transformers, or the base is refused."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from samples import config, cut, vision_base, write_table

from task.data.encoding.images import ImageEncoder
from task.data.prepared import prepare
from task.data.raw import DataError
from task.storage.store import Store

SIZES = ((40, 30), (30, 52), (64, 64), (224, 224), (17, 90))
MEANS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# Kinds of model with the library's default processor.
DEFAULT = [
    "beit", "bit", "clip", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2", "efficientnet",
    "focalnet", "hiera", "ijepa", "levit", "metaclip_2", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2",
    "perceiver", "poolformer", "pvt", "pvt_v2", "regnet", "resnet", "segformer", "siglip", "swiftformer", "swin",
    "swinv2", "vit", "vit_msn",
]  # fmt: skip
# Kinds of model and what their preprocessor_config.json has beside that.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "DINOv2: crop 224, images 518": (
        "dinov2",
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3, **MEANS,
         "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True},
    ),
    "CLIP, sizes as numbers": (
        "clip",
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 32, "do_center_crop": True,
         **MEANS},
    ),
    "a crop larger than the image": ("deit", {"size": {"height": 30, "width": 30}, "crop_size": 50, **MEANS}),
    "ConvNeXt, crop_pct": ("convnext", {"size": {"shortest_edge": 32}, "crop_pct": 0.875, **MEANS}),
    "ConvNeXt, large": ("convnext", {"size": {"shortest_edge": 384}, "crop_pct": 0.95, **MEANS}),
    "PoolFormer, crop_pct": ("poolformer", {"size": {"shortest_edge": 64}, "crop_pct": 0.9, "crop_size": 64, **MEANS}),
    "MobileViT, BGR": (
        "mobilevit", {"size": {"shortest_edge": 36}, "crop_size": 32, "do_flip_channel_order": True, "resample": 2}
    ),
    "MobileViT, RGB": ("mobilevit", {"size": {"shortest_edge": 36}, "crop_size": 32, "do_flip_channel_order": False}),
    "EfficientNet, include_top": ("efficientnet", {"size": {"height": 32, "width": 32}, "include_top": True, **MEANS}),
    "EfficientNet, no top": ("efficientnet", {"size": {"height": 32, "width": 32}, "include_top": False, **MEANS}),
    "EfficientNet, offset": (
        "efficientnet",
        {"size": 32, "rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False, "do_normalize": False},
    ),
    "EfficientNet, top without normalisation": ("efficientnet", {"size": 32, "do_normalize": False, **MEANS}),
    "ViT with a crop": ("vit", {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": 32}),
    "ViT, named": ("vit", {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 32}, **MEANS}),
    "ViT, fast": ("vit", {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 24, "width": 32}}),
    "ViT, of 2021": ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "do_normalize": True}),
    "ViT without mean": ("vit", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    "ViT without scale": ("vit", {"size": {"height": 32, "width": 32}, "do_rescale": False, "do_normalize": False}),
    **{f"resample {n}": ("vit", {"size": {"height": 20, "width": 30}, "resample": n}) for n in range(6)},
    "SigLIP": ("siglip", {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}),
    "BEiT with a crop": ("beit", {"size": 40, "crop_size": 32, "do_center_crop": True, **MEANS}),
    "LeViT": ("levit", {"size": {"shortest_edge": 32}, "crop_size": 32, **MEANS}),
    "another kind's processor": (
        "hgnet_v2", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}}
    ),
}  # fmt: skip


def base_of(folder: Path, kind: str, processor: dict[str, Any] | None, **model: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **model}))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth colours with edges in them."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, (x + 2 * y) / 3], -1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for left, top, colour in np.random.default_rng(seed).integers(0, 255, (6, 3)):
        draw.rectangle((left % width, top % height, left % width + 6, top % height + 9), fill=(int(colour), 40, 200))
    return image


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seen(base: Path, images: list[bytes], folder: Path) -> np.ndarray:
    """What a model is given of these images."""
    file = write_table(folder / "images.parquet", {"image": images, "label": [n % 2 for n in range(len(images))]})
    settings = config(name=str(file), **cut(test_fraction=0.0, validation_fraction=0.0))
    rows = prepare(settings, base, Store(folder / "store")).train
    return rows.batch(range(len(rows)))["pixel_values"].numpy()


def transformers_own(base: Path, images: list[bytes]) -> np.ndarray:
    from transformers import AutoImageProcessor
    from transformers.image_utils import load_image

    processor = AutoImageProcessor.from_pretrained(base, backend="pil")
    loaded = [load_image(Image.open(io.BytesIO(image))) for image in images]
    return np.stack([processor(images=image, return_tensors="np")["pixel_values"][0] for image in loaded])


@pytest.mark.each_value
@pytest.mark.parametrize("kind", DEFAULT)
def test_a_default_processor_is_followed(kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    base = base_of(tmp_path / "base", kind, {})
    AutoImageProcessor.from_pretrained(base, backend="pil").save_pretrained(base)
    images = [content(photo(size)) for size in SIZES[:3]]
    np.testing.assert_allclose(seen(base, images, tmp_path), transformers_own(base, images), atol=2e-5, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_a_processor_is_followed(name: str, tmp_path: Path) -> None:
    kind, processor = NAMED[name]
    base = base_of(tmp_path / "base", kind, processor, image_size=518)
    images = [content(photo(size)) for size in SIZES]
    np.testing.assert_allclose(seen(base, images, tmp_path), transformers_own(base, images), atol=2e-5, rtol=2e-5)


REFUSED = {
    "none": ("vit", None, {}, "has no preprocessor_config.json, which says how pixels become numbers"),
    "a key of another hand": ("vit", {"size": 8, "do_whiten": True, "extra": 2}, {}, ": do_whiten, extra; take"),
    "a key of another processor": ("deit", {"size": 8, "crop_pct": 0.9}, {}, "unknown keys: crop_pct"),
    "proportions kept": ("vit", {"size": {"shortest_edge": 8}}, {}, "keeps the proportions of images"),
    "patches": ("siglip2", {"image_processor_type": "Siglip2ImageProcessor"}, {}, "makes other inputs than pixels"),
    "colours of a palette": ("imagegpt", {"clusters": [[0, 0, 0], [1, 1, 1]], "size": 8}, {}, "makes other inputs"),
    "no such class": ("vit", {"image_processor_type": "NoSuchImageProcessor"}, {}, "cannot be used here"),
    "no processor": ("vit", {"image_processor_type": "AutoModel"}, {}, "is the name of no image processor"),
    "no word on the class": ("hgnet_v2", {"size": 8}, {}, "cannot be used here"),
    "channels": ("resnet", {"size": {"shortest_edge": 8}, **MEANS}, {"num_channels": 1}, "3 means or deviations for 1"),
    "colours of one channel": (
        "clip", {"image_mean": 0.5, "image_std": 0.5, "do_convert_rgb": True}, {"num_channels": 1}, "has one channel"
    ),
    "giants": ("vit", {"size": {"height": 100_000, "width": 8}}, {}, "too large|numbers above 4096"),
    "a giant before a crop": ("convnext", {"size": {"shortest_edge": 64}, "crop_pct": 0.001}, {}, "crop_pct below 0.5"),
    "no deviation": ("resnet", {"image_std": [0.0, 1.0, 1.0]}, {}, "does not say how pixels become numbers"),
    "a table in a table": ("resnet", {"size": {"shortest_edge": {"a": 1}}}, {}, "cannot be used here"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_processor_that_cannot_be_followed_is_refused(name: str, tmp_path: Path) -> None:
    kind, processor, model, said = REFUSED[name]
    base = base_of(tmp_path / "base", kind, processor, **model)
    with pytest.raises(DataError, match=said) as refused:
        ImageEncoder.of(base, "image").look.fitting()
    assert str(tmp_path) not in refused.value.public
    assert "\n" not in refused.value.public


def test_a_processor_inside_another_is_followed(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "clip", {"size": 99})
    own = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 24}
    (base / "processor_config.json").write_text(
        json.dumps({"processor_class": "CLIPProcessor", "image_processor": own})
    )
    images = [content(photo(size)) for size in SIZES]
    found = seen(base, images, tmp_path)
    np.testing.assert_allclose(found, transformers_own(base, images), atol=2e-5, rtol=2e-5)
    assert found.shape[2:] == (24, 24)


def test_images_are_not_resized_where_the_processor_does_not(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "vit", {"do_resize": False}, image_size=[30, 40])
    images = [content(photo((40, 30), seed)) for seed in (1, 2)]
    np.testing.assert_allclose(seen(base, images, tmp_path), transformers_own(base, images), atol=2e-5)
    with pytest.raises(DataError, match="takes only images of 40 x 30 pixels"):
        seen(base, [*images, content(photo((41, 30)))], tmp_path)


def test_a_strip_is_refused_where_proportions_are_kept(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "clip", {})
    with pytest.raises(DataError, match="more than 20 times longer than wide"):
        seen(base, [content(photo((2, 90)))] * 2, tmp_path)


# ------------------------------------------------------------------------------- what files hold
@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turned", range(9))
def test_photos_are_upright(kind: str, turned: int, tmp_path: Path) -> None:
    """As cameras write them: the pixels as they lie on the sensor, and how it was held."""
    exif = Image.Exif()
    exif[0x0112] = turned
    image = content(photo((40, 24)), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    base = vision_base(tmp_path / "base", 32, 3)
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB").resize((32, 32), 2)
    found = seen(base, [image] * 2, tmp_path)[0]
    np.testing.assert_allclose(found, np.asarray(upright).transpose(2, 0, 1) / 255, atol=1e-6)
    lying = Image.open(io.BytesIO(image)).convert("RGB").resize((32, 32), 2)
    same = np.allclose(found, np.asarray(lying).transpose(2, 0, 1) / 255, atol=1e-3)
    assert same == (turned in (0, 1) or kind == "TIFF")  # Pillow turns these itself


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + struct.pack(">9I", *range(9)), b"Exif\0\0"]
)
def test_a_damaged_exif_says_nothing(damage: bytes, tmp_path: Path) -> None:
    image = content(photo((40, 24)), "JPEG", exif=damage)
    base = vision_base(tmp_path / "base", 32, 3)
    plain = Image.open(io.BytesIO(image)).convert("RGB").resize((32, 32), 2)
    np.testing.assert_allclose(
        seen(base, [image] * 2, tmp_path)[0], np.asarray(plain).transpose(2, 0, 1) / 255, atol=1e-6
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_is_read_as_by_transformers_or_refused(mode: str, tmp_path: Path) -> None:
    image = photo((12, 12)).convert(mode if mode not in ("PA", "I;16") else "P" if mode == "PA" else "I")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo((12, 12)).convert("L")).astype(np.uint16) * 257)
    if mode == "PA":
        image.info["transparency"] = 0
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "F", "I") else "PNG"
    images = [content(image, kind)] * 2
    base = base_of(tmp_path / "base", "vit", {"size": {"height": 8, "width": 8}})
    if mode.startswith(("I", "F")):
        with pytest.raises(DataError, match="only images of 8 bits a channel"):
            seen(base, images, tmp_path)
        return
    np.testing.assert_allclose(seen(base, images, tmp_path), transformers_own(base, images), atol=2e-5)

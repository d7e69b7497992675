"""Small data of every kind, as files, and the settings that read it."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from task.config import TaskConfig

WORDS = ["good", "bad", "film", "a", "very", "dull", "bright"]
TEXTS = [("a good film", "good"), ("a very bad film", "bad"), ("bright", "good"), ("dull", "bad")] * 3


def config(kind: str = "image", **options: object) -> TaskConfig:
    flat = {f"data.{name.replace('_', '-')}": value for name, value in options.items()}
    return TaskConfig.read({"task.kind": f"{kind}-classification", "model.name": "given", **flat})


def vision_base(folder: Path, size: object = 8, channels: int = 1, **processor: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"image_size": size, "num_channels": channels}))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow as pa
    from pyarrow import csv, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".csv":
        csv.write_csv(pa.table(columns), path)
    else:
        parquet.write_table(pa.table(columns), path)
    return path


def text_columns() -> dict[str, list[object]]:
    return {"text": [text for text, _ in TEXTS], "label": [label for _, label in TEXTS]}


def scans(count: int = 12, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 256, (count, size, size)).astype(np.uint8)
    return values, np.arange(count) % 3


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def cut(**options: object) -> dict[str, object]:
    """Options for data without splits of its own."""
    return {"test_split": "", "validation_fraction": 0.25, "test_fraction": 0.25, **options}

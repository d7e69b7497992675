"""The digits as files: one folder for a server or a simulation, and each node's share of it as a file of its own.

.venv/bin/python -m benchmarks.shares DIR clinic-1 clinic-2 clinic-3
"""

import argparse
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.config import TaskConfig
from task.data.partition import partition
from task.data.prepared import data_index
from task.data.sources.digits import DIGITS_STRETCH, digits_part
from task.storage.store import Store

LABELS = "|".join(map(str, range(10)))
Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, 8, 8) from 0 to 240, labels (N,)


@dataclass(frozen=True)
class Shares:
    """`whole` is a folder with train, validation and test; `files` are the shares of the nodes, in their order."""

    whole: Path
    files: tuple[Path, ...]

    @classmethod
    def write(cls, folder: Path, settings: Mapping[str, object], nodes: Sequence[str]) -> "Shares":
        """Divide the digits as a simulation with these settings would; nodes get csv, jsonl and parquet in turn, each
        in a folder of its name."""
        whole = folder / "whole"
        whole.mkdir(parents=True)
        for part in ("train", "validation", "test"):
            parquet(whole / f"{part}.parquet", digits(part))
        store = Store(folder / "store")
        config = TaskConfig.read({**settings, "data.name": str(whole)})
        plan = data_index(config, store)
        split = partition(config, plan, len(nodes), store)
        images, labels = digits("train")
        files = []
        for (number, name), positions in zip(enumerate(nodes), split, strict=True):
            suffix, write = list(WRITERS.items())[number % len(WRITERS)]
            (place := folder / name).mkdir()
            rows = plan.train.rows[positions]
            write(place / f"digits{suffix}", (images[rows], labels[rows]))
            files.append(place / f"digits{suffix}")
        return cls(whole, tuple(files))


def digits(part: str) -> Digits:
    """A part of the embedded digits."""
    images, labels = digits_part(part)
    return images[:, 0] * np.uint8(DIGITS_STRETCH), labels


def parquet(path: Path, rows: Digits) -> None:
    """Images as bytes."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.table({"image": [png(image) for image in rows[0]], "label": rows[1].tolist()}), path)


def jsonl(path: Path, rows: Digits) -> None:
    """Images as rows of numbers."""
    lines = [json.dumps({"image": i.tolist(), "label": int(n)}) for i, n in zip(*rows, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def table(path: Path, rows: Digits) -> None:
    """A csv file of paths, relative to it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for number, (image, label) in enumerate(zip(*rows, strict=True)):
            (path.parent / f"{number}.png").write_bytes(png(image))
            writer.writerow([f"{number}.png", int(label)])


def png(image: NDArray[np.uint8]) -> bytes:
    """An image without loss."""
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(image).save(written, "PNG")
    return written.getvalue()


WRITERS: dict[str, Callable[[Path, Any], None]] = {".csv": table, ".jsonl": jsonl, ".parquet": parquet}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("nodes", nargs="+", metavar="NAME")
    arguments = parser.parse_args()
    for file in Shares.write(arguments.folder, {"data.partitioner": "iid"}, arguments.nodes).files:
        print(file)


if __name__ == "__main__":
    main()

"""Folders of images: one folder per class, or images with a table that describes them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from task.data.raw import DataError, Raw, Table
from task.data.request import Reading
from task.data.sources import registry
from task.data.sources.base import FolderSource, Order, load_files
from task.data.splits import TRAIN, usual
from task.data.tables.decoding import hidden

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SYSTEM = ("thumbs.db", "desktop.ini")  # files that Windows creates in folders
IMAGE, LABEL, FILE = "image", "label", "file_name"


@dataclass(frozen=True)
class ImageFolder(FolderSource):
    """Images in `<split>/<class>/`, or in `<class>/`, which is the split `train`; or with a table `metadata.csv` that
    names each by `file_name`. The columns are `image`, `label` and the columns of the table."""

    order = Order.CONTENTS

    @classmethod
    def knows(cls, folder: Path) -> bool:
        """Return whether there is an image anywhere in it."""
        return holds_images(folder)

    def splits(self) -> Sequence[str]:
        """Return the splits: the folders named like splits, else `train`. Raises DataError if only some are."""
        return tuple(self._places())

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the paths of images, and labels. Raises DataError if the class of an image is not clear."""
        place = self._places()[split]
        table = _table(place)
        return _by_table(place, table, reading) if table else _by_class(place)

    def _places(self) -> dict[str, Path]:
        inside = _folders(self.folder)
        named = [path for path in inside if usual(path.name)]
        if len(named) > 1 and _table(self.folder):
            problem = "one table is about the images of several splits"
            raise DataError(f"{self.folder}: {problem}; put a metadata.csv into the folder of each split", problem)
        if not named or _table(self.folder):
            return {TRAIN: self.folder}
        if len(named) < len(inside):
            others = [path.name for path in inside if path not in named]
            problem = "some folders of images are called like splits, and some are not"
            said = f"{self.folder}: {problem}: {[path.name for path in named][:5]} and {others[:5]}"
            raise DataError(f"{said}; put classes into train/<class> and test/<class>", problem)
        return {path.name: path for path in named}


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its name."""
    return path.suffix.lower() in ENDINGS


def holds_images(folder: Path) -> bool:
    """Return whether there is an image anywhere in a folder."""
    return any(True for _ in _images(folder))


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if is_image(path) and not hidden(str(path.relative_to(folder))))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not hidden(path.name) and holds_images(path))


def _table(folder: Path) -> Path | None:
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        problem = "several tables say what is on the images"
        raise DataError(f"{folder}: {problem}: {', '.join(path.name for path in found)}; keep one", problem)
    return found[0] if found else None


def _by_class(folder: Path) -> Table:
    """Return every image with its folder as the label."""
    import datasets

    images = [path.relative_to(folder) for path in _images(folder)]
    for path in images:
        if len(path.parts) != 2:
            problem = "an image is not in a folder of its class"
            cure = "put images into <class>/ or <split>/<class>/, or name them in a metadata.csv by file_name"
            raise DataError(f"{folder / path}: {problem}; {cure}", f"{problem}; {cure}")
    names = sorted({path.parts[0] for path in images})
    columns: dict[str, list[Any]] = {
        IMAGE: [str(path) for path in images],
        LABEL: [names.index(path.parts[0]) for path in images],
    }
    kinds = datasets.Features({IMAGE: datasets.Value("string"), LABEL: datasets.ClassLabel(names=names)})
    dataset = datasets.Dataset.from_dict(columns, features=kinds)
    return Table(str(folder), dataset, folder, (IMAGE, LABEL), labelled="name of a folder", notices=_others(folder))


def _others(folder: Path) -> tuple[str, ...]:
    """Return notices on files that are not images: pictures in unsupported formats must not be ignored silently."""
    inside = (path for path in folder.rglob("*") if path.is_file() and not hidden(str(path.relative_to(folder))))
    left = Counter(path.suffix.lower() for path in inside if not is_image(path) and path.name.lower() not in SYSTEM)
    kinds = ", ".join(f"{count} of '{ending or 'no ending'}'" for ending, count in sorted(left.items()))
    return (f"{folder}: files that are not read as images are left out: {kinds}",) if left else ()


def _by_table(folder: Path, table: Path, reading: Reading) -> Table:
    """Return the rows of a table; its `file_name` is the image."""
    asked = [FILE if name == IMAGE else name for name in reading.columns] if reading.columns is not None else None
    wanted = replace(reading, columns=None if asked is None else tuple(asked), required={FILE: ""})
    found = load_files(table, TRAIN, [file for file in [registry.table_file(table)] if file], wanted)
    found.require(FILE)
    names = tuple(IMAGE if name == FILE else name for name in found.names)
    return replace(found, dataset=found.dataset.rename_column(FILE, IMAGE), folder=folder, names=names)

"""What a folder of data is: saved by `datasets`, files by split, images, arrays, or with a dataset card."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from task.data.raw import DataError
from task.data.request import Source
from task.data.sources.files import Files
from task.data.sources.image_folder import TABLES, ImageFolder, holds_images
from task.data.sources.npz import Npz
from task.data.sources.saved import SAVED, SAVED_SPLITS, Loaded, Saved
from task.data.splits import TRAIN, called, split_of, usual
from task.data.tables.decoding import hidden
from task.data.tables.tables import kind_of, stem_of

CARDS = ("README.md", "dataset_infos.json")
NOTES = ("dataset_info.json", "state.json")
WORDS = re.compile(r"[-_. ()\d]+")
SAYS = ("configs:", "dataset_info:")  # in a card: how files are read


def open_folder(folder: Path, subset: str, train_split: str) -> Source:
    """Return the source that a folder is. Raises DataError where it cannot be made out."""
    if (folder / SAVED_SPLITS).is_file() or (folder / SAVED).is_file():
        return Saved(folder)
    if _has_card(folder):
        return Loaded(str(folder), subset, folder)
    if subset:
        return open_folder(_inside(folder, subset), "", train_split)
    files = _by_split(folder)
    arrays = sorted(path for path in folder.glob("*.npz") if not hidden(path.name))
    if files and called(train_split, files, str(folder)):
        return Files(folder, files)
    if not files and len(arrays) == 1:
        return Npz(arrays[0])
    if not files and holds_images(folder):
        return ImageFolder(folder)
    if files:
        return _without_train(folder, files)
    return Loaded(str(folder), subset, folder)


def _has_card(folder: Path) -> bool:
    """Whether a card says how files are read, or which names labels have."""
    card = folder / CARDS[0]
    if (folder / CARDS[1]).is_file():
        return True
    if not card.is_file():
        return False
    with card.open(encoding="utf-8", errors="replace") as lines:
        head = next(lines, "")
        return head.strip() == "---" and any(line.startswith(SAYS) for line in _until_end(lines))


def _until_end(lines: Any) -> Iterator[str]:
    for line in lines:
        if line.strip() == "---":
            return
        yield line


def _inside(folder: Path, subset: str) -> Path:
    place = folder / subset
    if Path(subset).name != subset or not place.is_dir():
        have = sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
        raise DataError(f"{folder} has no folder '{subset}' (data.subset), only {', '.join(map(repr, have)) or 'none'}")
    return place


def _by_split(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The tables of a folder by split: of files by their names, here or in `data`, else of folders that are called like
    splits."""
    for place in (folder, folder / "data"):
        if files := _tables(place):
            found: dict[str, tuple[Path, ...]] = {}
            for path in files:
                split = split_of(stem_of(path))
                found[split] = (*found.get(split, ()), path)
            return found
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not hidden(path.name)]
    return {stem_of(path): files for path in inside if usual(stem_of(path)) and (files := _tables(path))}


def _tables(folder: Path) -> tuple[Path, ...]:
    """The tables in a folder, but for those that tell of images beside them."""
    if not folder.is_dir():
        return ()
    inside = (path for path in sorted(folder.iterdir()) if path.is_file() and not hidden(path.name))
    return tuple(path for path in inside if kind_of(path) and path.name not in TABLES and not _is_note(path))


def _is_note(path: Path) -> bool:
    """Whether a file is about the data rather than rows: LICENSE.txt, readme.txt, dataset_info.json."""
    return path.name in NOTES or (path.suffix.lower() == ".txt" and not usual(split_of(path.stem)))


def _without_train(folder: Path, files: dict[str, tuple[Path, ...]]) -> Source:
    """Where no file is called like the split that is trained on: by a word in the names of all, such as train in
    news-train.csv; where no name has one, all files are trained on."""
    words = {split: [word for word in WORDS.split(split) if usual(word)] for split in files}
    kinds = {kind_of(path) for paths in files.values() for path in paths}
    hinted = any(part in split.casefold() for split in files for part in ("train", "test"))  # TrainRows.csv
    if len(files) == 1 or (not any(words.values()) and not hinted and len(kinds) == 1):
        every = tuple(path for paths in files.values() for path in paths)
        said = (f"{folder}: all {len(every)} files are read as the split '{TRAIN}'",) if len(every) > 1 else ()
        return Files(folder, {TRAIN: every}, said)
    if any(len(found) != 1 for found in words.values()):
        return Files(folder, files)
    grouped: dict[str, tuple[Path, ...]] = {}
    for split, paths in files.items():
        grouped[words[split][0]] = (*grouped.get(words[split][0], ()), *paths)
    told = "; ".join(f"'{split}' is {', '.join(path.name for path in paths[:3])}" for split, paths in grouped.items())
    return Files(folder, grouped, (f"{folder}: splits are known by words in names of files: {told}",))

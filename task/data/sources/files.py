"""Splits of a folder, or a single file: each split is one file or its shards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from task.data.raw import DataError, Raw
from task.data.request import Reading
from task.data.splits import SHARD
from task.data.tables.tables import read_table, stem_of


@dataclass(frozen=True)
class Files:
    """The files of every split. Of a split that several files claim none is read."""

    place: Path
    files: dict[str, tuple[Path, ...]]
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.place)

    def stamp(self) -> object:
        """Return names, sizes and times of the files."""
        return stamps([path for paths in self.files.values() for path in paths])

    def splits(self) -> Sequence[str]:
        """Return the splits that exist."""
        return tuple(self.files)

    def load(self, split: str, reading: Reading) -> Raw:
        """Return the rows of a split. Raises DataError for one that two files claim, or of which a shard is missing."""
        paths = self.files[split]
        _check_shards(self.place, split, paths)
        table = read_table(paths, reading)
        return replace(table, notices=(*self.notices, *table.notices))


def stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of every file."""
    return [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in paths]


def stamps_inside(folder: Path) -> list[tuple[str, int, int]]:
    """Return those of every file in a folder and its folders."""
    return stamps(sorted(path for path in folder.rglob("*") if path.is_file()))


def _check_shards(place: Path, split: str, paths: Sequence[Path]) -> None:
    """Raise DataError unless several files of one name are all shards that there are."""
    shards = [SHARD.fullmatch(stem_of(path)) for path in paths]
    if any(shard is None for shard in shards):
        alone = len(paths) == 1 or not any(stem_of(path).casefold() == split.casefold() for path in paths)
        if alone and not any(shards):  # parts of a folder that is called like the split
            return
    counts = {int(shard["count"]) for shard in shards if shard}
    numbers = {int(shard["number"]) for shard in shards if shard}
    kinds = {path.name.removeprefix(stem_of(path)) for path in paths}
    if None in shards or len(counts) > 1 or len(kinds) > 1 or len(numbers) < len(paths):
        named = sorted(path.name for path in paths)
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        problem = "several files are of one split"
        said = (
            f"{place}: {problem}, '{split}': {', '.join(named[:5])}{more}; keep one of them, or name a file by itself"
        )
        raise DataError(said, problem)
    if counts and len(numbers) < max(counts):
        missing = sorted(set(range(max(counts))) - numbers)[:5]
        problem = "shards of a split are missing"
        raise DataError(f"{place}: {problem}, '{split}': {missing} of {max(counts)}", problem)

"""Sources by name. Each kind of source is one file of this folder.

`open_source` uses only names and files; `base.read_split` loads one split, as arrays or as a table with only the needed
columns. No source unpickles or runs code that comes with data.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from task import extensions
from task.data.raw import DataError
from task.data.sources.base import Order, Place, Source, TableFile
from task.data.tables.decoding import PACKED, hidden, unpacked_name

PACKAGE = "task.data.sources"
INSTEAD = {  # what to do with unsupported kinds of files
    ".xls": "save it as .xlsx or .csv",
    ".xlsm": "save it as .xlsx or .csv",
    ".ods": "save it as .xlsx or .csv",
    ".dta": "save it as .csv or .parquet",
    ".sav": "save it as .csv or .parquet",
    ".sas7bdat": "save it as .csv or .parquet",
    ".h5": "save it as .parquet or .npz",
    ".hdf5": "save it as .parquet or .npz",
    ".orc": "save it as .parquet",
    ".npy": "save images and labels together as .npz",
    ".pkl": "a pickle can run code and is never read; save it as .parquet",
    ".pickle": "a pickle can run code and is never read; save it as .parquet",
    ".pt": "a pickle can run code and is never read; save it as .parquet or .npz",
    ".pth": "a pickle can run code and is never read; save it as .parquet or .npz",
    ".zip": "of one file of text (.csv, .json and so on) it is read; unpack others into a folder and name that",
    ".tar": "unpack it into a folder and name that",
    ".tgz": "unpack it into a folder and name that",
}


def names() -> list[str]:
    """Return the names of all sources."""
    return extensions.names(PACKAGE)


def load(name: str) -> type[Source]:
    """Return the class of a source. Raises ConfigError if there is none of this name."""
    return extensions.load(PACKAGE, name, Source)  # type: ignore[type-abstract]


def of_keyword(name: str) -> type[Source] | None:
    """Return the source that a value of `data.name` always means; None: the value is a path or an id."""
    return _claims().keywords.get(name)


def suffixes() -> tuple[str, ...]:
    """Return the endings of all supported files."""
    return tuple(_claims().suffixes)


def table_file(path: Path) -> TableFile | None:
    """Return a file of rows with named columns; None for any other file."""
    kind = _of_file(path)
    return kind(path) if kind is not None and issubclass(kind, TableFile) else None


def open_source(name: str, subset: str = "", train_split: str = "train", public: str = "") -> Source:
    """Return the source for `data.name` or a node's `data-path`.

    Raises DataError if it does not exist or may not be read, with the public message `public` or a general one.
    """
    if kind := of_keyword(name):
        return kind.open(Place(name))
    if not name.strip():
        raise DataError("data.name is empty; name a file, a folder or a dataset of the hub", "data.name is empty")
    path, public = Path(name).expanduser(), public or unreadable(name)
    place = Place(name, None, subset, train_split, public)
    try:
        if path.is_dir():
            return _open_folder(replace(place, path=path.resolve()))
        if path.is_file():
            return _open_file(replace(place, path=path.resolve()), path.resolve())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", public) from error
    kinds = (*suffixes(), *PACKED, *INSTEAD)
    if path.suffix.lower() in kinds or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise DataError(f"there is no file or folder {path.absolute()}", public)
    return _claims().fallback.open(place)


def unreadable(name: str) -> str:
    """Return the public message for data that a message names: the same whether the file exists or not."""
    return f"data.name = '{name:.80}' cannot be read here"


# ------------------------------------------------------------------------------- the source of a place
@dataclass(frozen=True)
class _Claims:
    """The declarations of all sources: what each recognises."""

    keywords: dict[str, type[Source]]
    suffixes: dict[str, type[Source]]
    fallback: type[Source]
    folders: dict[Order, list[type[Source]]]


def _claims() -> _Claims:
    return _claims_of(tuple(names()))


@lru_cache(maxsize=4)
def _claims_of(names: tuple[str, ...]) -> _Claims:
    """Return the declarations. Raises DataError if two sources recognise the same."""
    kinds = [load(name) for name in names]
    [fallback] = _once(("what no source knows", kind) for kind in kinds if kind.fallback).values()
    return _Claims(
        keywords=_once((word, kind) for kind in kinds for word in kind.keywords),
        suffixes=_once((suffix, kind) for kind in kinds for suffix in kind.suffixes),
        fallback=fallback,
        folders={order: [kind for kind in kinds if kind.order is order] for order in Order},
    )


def _once(claims: Iterable[tuple[str, type[Source]]]) -> dict[str, type[Source]]:
    found: dict[str, type[Source]] = {}
    for claim, kind in claims:
        if claim in found:
            raise _conflict(claim, found[claim], kind)
        found[claim] = kind
    return found


def _conflict(claim: str, one: type[Source], other: type[Source]) -> DataError:
    files = " and ".join(f"{kind.__module__} ({kind.__name__})" for kind in (one, other))
    problem = "two sources recognise the same data"
    return DataError(f"{problem}, {claim}: {files}; change what one of them declares", problem)


def _open_folder(place: Place) -> Source:
    """Return the source for a folder: the first in `Order` that knows it."""
    claims, folder = _claims(), place.path
    assert folder is not None
    for order in Order:
        if place.subset and order is Order.SPLITS:
            return _open_folder(replace(place, path=_inside(folder, place.subset), subset=""))
        knowing = [kind for kind in claims.folders[order] if kind.knows(folder)]
        if len(knowing) > 1:
            raise _conflict(f"the folder {folder}", *knowing[:2])
        if knowing:
            return knowing[0].open(place)
    return claims.fallback.open(place)


def _inside(folder: Path, subset: str) -> Path:
    place = folder / subset
    if Path(subset).name != subset or not place.is_dir():
        have = sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
        raise DataError(f"{folder} has no folder '{subset}' (data.subset), only {', '.join(map(repr, have)) or 'none'}")
    return place


def _open_file(place: Place, path: Path) -> Source:
    if kind := _of_file(path):
        return kind.open(place)
    known = _claims().suffixes
    tables = ", ".join(suffix for suffix, kind in known.items() if issubclass(kind, TableFile))
    others = "".join(f", {suffix}" for suffix, kind in known.items() if not issubclass(kind, TableFile))
    kinds = f"{tables}, packed as {', '.join(PACKED)} or not{others}"
    advice = INSTEAD.get(path.suffix.lower(), "")
    said = f"{path} is not one of the supported kinds of file: {kinds}"
    raise DataError(said + (f"; {advice}" if advice else ""))


def _of_file(path: Path) -> type[Source] | None:
    """Return the source that opens files of this ending. Raises DataError for a damaged archive."""
    kind = _claims().suffixes.get(unpacked_name(path).suffix.lower())
    packed = path.suffix.lower() in PACKED
    return None if packed and not (kind and issubclass(kind, TableFile) and kind.packable) else kind

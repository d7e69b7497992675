"""Names of splits: as configured, and as commonly used in data."""

import re
from collections.abc import Iterable

from task.data.raw import DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
ALSO = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "val", "valid", "dev", "eval", "evaluation"),
    TEST: ("test", "testing"),
}
SHARD = re.compile(r"(?P<split>.+?)[-_](?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?")


def called(wanted: str, have: Iterable[str], where: str) -> str:
    """Return the split for a name: the one of that name, in any case, or of an equivalent name; empty if there is none.
    Raises DataError if several match."""
    names = list(have)
    folded = wanted.casefold()
    group = next((group for group in ALSO.values() if folded in group), (folded,))
    for found in (
        [one for one in names if one.casefold() == folded],
        [one for one in names if one.casefold() in group],
    ):
        if len(found) > 1:
            shown = " and ".join(map(repr, found))
            problem = f"several splits may be '{wanted}'"
            raise DataError(f"{where}: {problem}: {shown}; keep one, or name it by data.{_kind(folded)}-split", problem)
        if found:
            return found[0]
    return ""


def usual(name: str) -> bool:
    """Return whether a name is a common name of splits."""
    return any(name.casefold() in group for group in ALSO.values())


def split_of(stem: str) -> str:
    """Return the split of a file by its name without endings: train for train-00000-of-00002."""
    shard = SHARD.fullmatch(stem)
    return shard["split"] if shard else stem


def _kind(name: str) -> str:
    return next((kind for kind, group in ALSO.items() if name in group), TRAIN)

"""How much a store may hold, and what goes first: prepared rows that were not used for longest.

Nothing else is removed by itself here. What can only be lost, such as an account of privacy, is no part of it; bases
stay until their owner removes them (`thistledown purge`).
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from task.storage import seal
from task.storage.store import Store

LOG = logging.getLogger("flwr")
ROWS = ("data", "indexes", "splits")  # kinds that are made again from what is still there
LIMIT = 64 * 10**9  # bytes of such rows in a store that has no limit of its own
RECENT = 3600  # seconds for which what was used stays: another process may just be about to read it


@dataclass(frozen=True)
class Kept:
    """One thing in a store."""

    kind: str
    key: str
    path: Path
    bytes: int
    used: float  # when it was last used, in seconds since the epoch
    source: str  # what it was made from, as far as that is known


def inventory(store: Store) -> list[Kept]:
    """Return all things in a store, those first that were not used for longest."""
    found = [thing for folder in _folders(store.root) for thing in _things(folder)]
    return sorted(found, key=lambda thing: (thing.used, thing.kind, thing.key))


def trim(store: Store, coming: int = 0) -> int:
    """Remove prepared rows that were not used for longest, until `coming` bytes more are within the store's limit.

    Return how many bytes are still too many. A store without a limit has one for prepared rows alone.
    """
    things = inventory(store)
    counted = things if store.limit else [thing for thing in things if thing.kind in ROWS]
    over = sum(thing.bytes for thing in counted) + (coming if store.limit else 0) - (store.limit or LIMIT)
    for thing in things:
        if over <= 0:
            break
        if thing.kind in ROWS and time.time() - thing.used > RECENT:
            LOG.info("removed %s, %d bytes, from the store: it is above its limit", thing.path, thing.bytes)
            store.remove(thing.kind, thing.key)
            over -= thing.bytes
    return max(over, 0) if store.limit else 0


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _things(folder: Path) -> Iterator[Kept]:
    for path in folder.iterdir():
        try:
            size, used = _bytes(path), path.stat().st_mtime
        except FileNotFoundError:  # another process has removed it
            continue
        yield Kept(folder.name, path.name, path, size, used, str(seal.about(path).get("from", "")))


def _bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)

"""The size limit of a store. The prepared rows that were unused for longest are removed first.

Nothing else is removed automatically. Things that cannot be made again, such as a privacy account, are not in a store.
Bases stay until their owner removes them (`thistledown purge`).
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
ROWS = ("data", "indexes", "splits", "widened", "features")  # kinds that can be made again from local data
LIMIT = 64 * 10**9  # bytes of prepared rows in a store without a limit of its own
RECENT = 3600  # seconds after its last use in which nothing is removed: another process may be about to read it


@dataclass(frozen=True)
class Kept:
    """An item of a store."""

    kind: str
    key: str
    path: Path
    bytes: int
    used: float  # when it was last used, in seconds since the epoch
    source: str  # what it was made from, if known


def inventory(store: Store) -> list[Kept]:
    """Return all items of a store, least recently used first."""
    found = [thing for folder in _folders(store.root) for thing in _things(folder)]
    return sorted(found, key=lambda thing: (thing.used, thing.kind, thing.key))


def trim(store: Store, coming: int = 0) -> int:
    """Remove the least recently used prepared rows until `coming` more bytes fit into the store's limit.

    Return the number of bytes still above the limit. A store without a limit has one for prepared rows only.
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

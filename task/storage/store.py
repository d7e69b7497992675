"""The store of a process: bases, prepared data and splits that should not be made or fetched twice.

The server and the nodes on one machine have separate stores (`server/` and `node/`), so a simulation sends the base
over the wire exactly as a deployment does. The folder is `$THISTLEDOWN_CACHE`, else `$XDG_CACHE_HOME/thistledown`, else
`~/.cache/thistledown`; a node may name its own with `store-path` in its node config. No message can name a path.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from task.storage import seal
from task.storage.room import is_full, sentence

LOG = logging.getLogger("flwr")
USED = (
    "bases",
    "data",
    "embedded",
    "features",
    "indexes",
    "precision",
    "splits",
    "widened",
)  # kinds whose last use is recorded


class StoreError(OSError):
    """A store that is not writable."""

    public = "the node's store cannot be written"


@dataclass(frozen=True)
class Store:
    """A folder with one subfolder per kind of item; each has folders named by a hash.

    `limit` is its largest size in bytes, 0 for any: see `task.storage.retention`.
    """

    root: Path
    limit: int = 0

    @property
    def id(self) -> str:
        """Return the name of this store, drawn once: nodes that share a disk share it."""
        with self.made("id", "store") as folder:
            if folder is not None:
                (folder / "id").write_text(uuid.uuid4().hex)
        return (self.root / "id" / "store" / "id").read_text()

    def path(self, kind: str, key: str) -> Path:
        """Return the path of the item of this kind and key, whether it exists or not."""
        return self.root / kind / key

    def holds(self, kind: str, key: str) -> bool:
        """Return whether the item of this kind and key exists, undamaged.

        It is checked once per process. A damaged item is removed with a warning: it can be made or fetched again.
        """
        place = self.path(kind, key)
        if not place.exists():
            return False
        problem = seal.problem(place)
        if problem:
            if place.exists():  # otherwise another process has removed it
                LOG.warning("%s; it is removed from the store, to be made or fetched again", problem)
            self.remove(kind, key)
            return False
        if kind in USED:
            with suppress(OSError):  # a store may be one that this process only reads
                os.utime(place)
        return True

    def remove(self, kind: str, key: str) -> None:
        """Remove an item: its name is gone at once, and processes that have it mapped keep it."""
        place = self.path(kind, key)
        gone = place.with_name(f".{key[:16]}-{uuid.uuid4().hex}")
        try:
            place.rename(gone)
        except FileNotFoundError:  # another process was faster
            return
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)

    @contextmanager
    def made(self, kind: str, key: str, source: str = "") -> Iterator[Path | None]:
        """Make an item atomically: yield an empty folder to fill, or None if the item already exists, undamaged.

        The folder gets its name only when the block ends without an error, so a reader never sees half of it. If two
        processes make the same item, the first to finish wins. `source` says what it is made from.
        """
        place = self.path(kind, key)
        if self.holds(kind, key):
            yield None
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{key[:16]}-", dir=place.parent))
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error}") from error
        try:
            yield draft
            seal.write(draft, source)
            try:
                draft.rename(place)
            except OSError:
                if not place.exists():
                    raise
        except (OSError, SafetensorError) as error:
            if is_full(error):
                raise StoreError(sentence(error, self.root)) from error
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def server_store() -> Store:
    """Return the store of a ServerApp."""
    return Store(cache_home() / "server")


def node_store(path: str = "", limit: int = 0) -> Store:
    """Return the store of a node: `path` from its node config, else the machine's default."""
    return Store(Path(path).expanduser() if path else cache_home() / "node", limit)


def cache_home() -> Path:
    """Return the folder of all stores of this user."""
    if own := os.environ.get("THISTLEDOWN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thistledown"


def recipe_hash(recipe: object) -> str:
    """Return the key of an item made from `recipe` (any JSON value): 24 hexadecimal digits."""
    text = json.dumps(recipe, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

"""Where a process keeps what it should not make or fetch twice: bases, prepared data, splits.

A server and the nodes on the same machine have stores of their own (`server/` and `node/`), so that a
simulation moves the base over the wire exactly as a deployment does. The folder is
`$THISTLEDOWN_CACHE`, else `$XDG_CACHE_HOME/thistledown`, else `~/.cache/thistledown`; a node may name its own
with `store-path` in its node config. Nothing in a message can name a path.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class StoreError(OSError):
    """A store that cannot be written."""

    public = "the node's store cannot be written"


@dataclass(frozen=True)
class Store:
    """A folder with one subfolder per kind of thing, each holding folders named by a hash."""

    root: Path

    @property
    def id(self) -> str:
        """The name of this store, drawn once: nodes that share a disk share it."""
        with self.made("id", "store") as folder:
            if folder is not None:
                (folder / "id").write_text(uuid.uuid4().hex)
        return (self.root / "id" / "store" / "id").read_text()

    def path(self, kind: str, key: str) -> Path:
        """Where the thing of this kind and key is, or would be."""
        return self.root / kind / key

    @contextmanager
    def made(self, kind: str, key: str) -> Iterator[Path | None]:
        """Make a folder atomically: yields an empty folder to fill, or None where the thing is there already.

        The folder appears under its name only when the block ends without an error, so a reader never
        sees half of it; where two processes make the same thing, the first to finish wins.
        """
        place = self.path(kind, key)
        if place.exists():
            yield None
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{key[:16]}-", dir=place.parent))
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error}") from error
        try:
            yield draft
            try:
                draft.rename(place)
            except OSError:
                if not place.exists():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def server_store() -> Store:
    """The store of a ServerApp."""
    return Store(cache_home() / "server")


def node_store(path: str = "") -> Store:
    """The store of a node: `path` from its node config, else the default of its machine."""
    return Store(Path(path).expanduser() if path else cache_home() / "node")


def cache_home() -> Path:
    """The folder of all stores of this user."""
    if own := os.environ.get("THISTLEDOWN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thistledown"


def recipe_hash(recipe: object) -> str:
    """The key of a thing that is made from `recipe` (anything JSON can hold): 24 hexadecimal digits."""
    text = json.dumps(recipe, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

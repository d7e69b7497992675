"""The base: the pretrained model that everybody starts from and that never crosses the wire if it can be helped.

A base is a folder as transformers reads it (config, safetensors, tokenizer or preprocessor; `task.files.contents` lists
what it may hold) and a fingerprint of its files. The server finds it by hub id or folder, or trains the embedded one; a
node finds the same fingerprint in its own store, or by the same name, or is offered the server's copy.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from task.config import EMBEDDED_MODEL, Model
from task.data.encoding.tokenizer_file import check_tokenizer
from task.files.contents import (
    ADAPTED,
    ADAPTER,
    TOKENIZER,
    WANTED,
    BaseError,
    adapter,
    check,
    check_size,
    listed,
    may_be_named,
    weights,
)
from task.storage import seal
from task.storage.retention import trim
from task.storage.store import Store, recipe_hash

__all__ = [
    "HUB_ID",
    "Base",
    "BaseError",
    "BaseMissing",
    "accept_offer",
    "files",
    "fingerprint",
    "named_folder",
    "node_base",
    "node_bases",
    "server_base",
]

LOG = logging.getLogger("flwr")
HUB_ID = re.compile(r"\w[\w.\-]*(/\w[\w.\-]*)?")
CHUNK = 2**22  # bytes read at once
FINGERPRINT = re.compile(r"[0-9a-f]{32}")
BASES = "bases"  # in a store: those that were offered
NO_ROOM = "this node's store has no room for the offered base"
EDITION = 2  # of what is checked before a fingerprint is remembered


class BaseMissing(BaseError):
    """A base that a node does not have, or no longer: it may be offered."""


@dataclass(frozen=True)
class Base:
    """A pretrained model on this machine's disk."""

    name: str
    folder: Path
    fingerprint: str


def server_base(model: Model, store: Store) -> Base:
    """The base that a run starts from, on the server. Raises BaseError."""
    if model.name == EMBEDDED_MODEL:
        from task.models.embedded import trained_base

        folder = trained_base(store)
    elif adapter(folder := _located(model)):
        from task.models.merged import merged

        folder = merged(folder, store)
    else:
        check(folder)
    return Base(model.name, folder, fingerprint(folder, store))


def node_base(model: Model, wanted: str, store: Store, paths: bool = True) -> Base:
    """The base with the fingerprint `wanted`, on a node; `model.name` may be a path only where `paths`.

    Raises BaseMissing where the node lacks it, and says the same to others whatever it found at that name.
    """
    if not FINGERPRINT.fullmatch(wanted):
        raise BaseError(f"{wanted[:80]!r} is no fingerprint", "what the order names is no fingerprint")
    _adopt(store, wanted)
    if store.holds(BASES, wanted):
        return Base(model.name, store.path(BASES, wanted), wanted)
    message = f"neither the store {store.root} nor model.name = '{model.name}' has the base {wanted}"
    try:
        if model.name != EMBEDDED_MODEL and fingerprint(folder := named_folder(model, paths), store) == wanted:
            return Base(model.name, folder, wanted)
    except BaseError as error:
        message += f": {error}"
    raise BaseMissing(message, f"it lacks the base {wanted}")


def node_bases(model: Model, store: Store, paths: bool = True) -> list[str]:
    """Fingerprints of the bases this node could start from: those in its store, and what `model.name` is here (a path
    only where `paths`)."""
    names = [path.name for path in sorted(store.path(BASES, "").glob("*")) if FINGERPRINT.fullmatch(path.name)]
    for name in names:
        _adopt(store, name)
    kept = [name for name in names if store.holds(BASES, name)]
    if model.name == EMBEDDED_MODEL:
        return kept
    try:
        return [*kept, fingerprint(named_folder(model, paths), store)]
    except BaseError as error:
        LOG.info("model.name is not to be had here, the server may offer it: %s", error)
        return kept


def _adopt(store: Store, wanted: str) -> None:
    """Check a base that an earlier version kept, which wrote no hashes of its files; the fingerprint is one."""
    place = store.path(BASES, wanted)
    if not place.exists() or seal.sealed(place):
        return
    try:
        examine(place)
        whole = _hash(_sized(listed(place))) == wanted
    except BaseError as error:
        LOG.warning("%s", error)
        whole = False
    if whole:
        seal.write(place, "an offer of the server")
    else:
        LOG.warning("the base %s is not what its fingerprint says; it is removed from the store", wanted)
        store.remove(BASES, wanted)


def named_folder(model: Model, paths: bool = True) -> Path:
    """The folder of a model given as a path or a hub id (fetched once, kept by huggingface_hub). Without `paths` a name
    is no path: the disk is not looked at.

    Code is fetched only where `model.trust-remote-code` asks for it. Raises BaseError.
    """
    folder = _located(model, paths)
    check(folder)
    return folder


def _located(model: Model, paths: bool = True) -> Path:
    name = model.name
    folder = Path(name).expanduser()
    if paths and folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(name):
        problem = "there is no such folder, and it is not a hub id" if paths else "paths are not followed here"
        raise BaseError(f"model.name = '{name}': {problem}", "model.name is no hub id, and this node has no such base")
    return _fetched(name, model.trust_remote_code)


@lru_cache
def _fetched(name: str, with_code: bool) -> Path:
    """The hub is asked once per process, not at every message and evaluation."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, allow_patterns=[*WANTED, ADAPTER, ADAPTED, *(["*.py"] if with_code else [])])
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        message = f"model.name = '{name}': no such folder, and the hub did not give it: {error}"
        raise BaseError(message, "this node has no such base, and the hub did not give it") from error


def files(folder: Path) -> dict[str, Path]:
    """The files that make a base, by name. Raises BaseError for one that is not to be read."""
    return listed(folder)


def examine(folder: Path) -> None:
    """Raise BaseError for a base that holds anything but what a base may hold, or half of it. Read once, not in
    every process: it takes as long as reading the tokenizer."""
    found = check(folder)
    weights(found)
    if TOKENIZER in found:
        check_tokenizer(found[TOKENIZER])


def fingerprint(folder: Path, store: Store) -> str:
    """A hash of the names and bytes of a base's files; remembered per path, size and time of change. Raises BaseError
    for a base that is not to be read."""
    parts = files(folder)
    stats = [(name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in parts.items()]
    key = recipe_hash([EDITION, stats])
    with store.made("fingerprints", key) as draft:
        if draft is not None:
            examine(folder)
            (draft / "fingerprint").write_text(_hash(_sized(parts)))
    return (store.path("fingerprints", key) / "fingerprint").read_text()


def accept_offer(contents: Mapping[str, bytes | memoryview], wanted: str, store: Store) -> None:
    """Keep a base that the server sent.

    Nothing is written that is badly named, not what was announced or more than the store has room for, and nothing is
    kept that could not be read. Raises BaseError.
    """
    if bad := [name for name in contents if not may_be_named(name)]:
        raise BaseError(f"the offered base has bad file names: {bad!r:.500}", "the offered base has bad file names")
    for name, data in contents.items():
        check_size(name, len(data))
    if _hash({name: (len(data), [data]) for name, data in contents.items()}) != wanted:
        raise BaseError(message := f"the offered base is not {wanted}", message)
    if over := trim(store, sum(len(data) for data in contents.values())):
        raise BaseError(f"the store {store.root} has {over} bytes too little room for the offered base", NO_ROOM)
    with store.made(BASES, wanted, "an offer of the server") as draft:
        if draft is not None:
            for name, data in contents.items():
                (draft / name).write_bytes(data)
            examine(draft)


def _sized(parts: Mapping[str, Path]) -> dict[str, tuple[int, Iterable[bytes]]]:
    return {name: (path.stat().st_size, _chunks(path)) for name, path in parts.items()}


def _hash(contents: Mapping[str, tuple[int, Iterable[bytes | memoryview]]]) -> str:
    """Of every file its name, its size and its bytes, in pieces: models may be larger than memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(contents):
        size, chunks = contents[name]
        digest.update(f"{name}\0{size}\0".encode())
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk

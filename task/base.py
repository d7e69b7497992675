"""The base: the pretrained model that everybody starts from and that never crosses the wire if it can be helped.

A base is a folder as transformers reads it (config, safetensors, tokenizer or preprocessor) and a
fingerprint of its files. The server finds it by hub id or folder, or trains the embedded one; a node
finds the same fingerprint in its own store, or by the same name, or is offered the server's copy.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from task.config import EMBEDDED_MODEL, Model
from task.store import Store, recipe_hash

# What a base may consist of. No pickles: weights are safetensors or they are not read.
FILES = re.compile(r"[\w.\-]+\.(json|safetensors|txt|model|jinja)")
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # the same, for the hub
LOG = logging.getLogger("flwr")
HUB_ID = re.compile(r"\w[\w.\-]*(/\w[\w.\-]*)?")
CHUNK = 2**22  # bytes read at once
FINGERPRINT = re.compile(r"[0-9a-f]{32}")


class BaseError(ValueError):
    """A base that cannot be found or used; the message says where it was looked for."""


@dataclass(frozen=True)
class Base:
    """A pretrained model on this machine's disk."""

    name: str
    folder: Path
    fingerprint: str


def server_base(model: Model, store: Store) -> Base:
    """The base that a run starts from, on the server. Raises BaseError."""
    if model.name == EMBEDDED_MODEL:
        from task.embedded import trained_base

        folder = trained_base(store)
    else:
        folder = named_folder(model)
    return Base(model.name, folder, fingerprint(folder, store))


def node_base(model: Model, wanted: str, store: Store, paths: bool = True) -> Base:
    """The base with the fingerprint `wanted`, on a node; `model.name` may be a path only where `paths`.

    Raises BaseError where the node lacks it.
    """
    if not FINGERPRINT.fullmatch(wanted):
        raise BaseError(f"{wanted[:80]!r} is no fingerprint")  # it becomes a folder's name
    offered = store.path("bases", wanted)
    if offered.exists():
        return Base(model.name, offered, wanted)
    if model.name != EMBEDDED_MODEL and fingerprint(folder := named_folder(model, paths), store) == wanted:
        return Base(model.name, folder, wanted)
    raise BaseError(f"neither the store {store.root} nor model.name = '{model.name}' has the base {wanted}")


def node_bases(model: Model, store: Store, paths: bool = True) -> list[str]:
    """Fingerprints of the bases this node could start from: those in its store, and what `model.name` is here (a path
    only where `paths`)."""
    kept = [path.name for path in store.path("bases", "").glob("*")]
    if model.name == EMBEDDED_MODEL:
        return kept
    try:
        return [*kept, fingerprint(named_folder(model, paths), store)]
    except BaseError as error:
        LOG.info("model.name is not to be had here, the server may offer it: %s", error)
        return kept


def named_folder(model: Model, paths: bool = True) -> Path:
    """The folder of a model given as a path or a hub id (fetched once, kept by huggingface_hub). Without `paths` a name
    is no path: the disk is not looked at.

    Code is fetched only where `model.trust-remote-code` asks for it. Raises BaseError.
    """
    name = model.name
    folder = Path(name).expanduser()
    if paths and folder.is_dir():
        return _checked(folder)
    if not HUB_ID.fullmatch(name):
        raise BaseError(f"model.name = '{name}': there is no such folder, and it is not a hub id")
    return _checked(_fetched(name, model.trust_remote_code))


@lru_cache
def _fetched(name: str, with_code: bool) -> Path:
    """The hub is asked once per process, not at every message and evaluation."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*WANTED, *(["*.py"] if with_code else [])]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BaseError(f"model.name = '{name}': no such folder, and the hub did not give it: {error}") from error


def files(folder: Path) -> dict[str, Path]:
    """The files that make a base, by name."""
    return {path.name: path for path in sorted(folder.iterdir()) if FILES.fullmatch(path.name) and path.is_file()}


def fingerprint(folder: Path, store: Store) -> str:
    """A hash of the names and bytes of a base's files; remembered per path, size and time of change."""
    parts = files(folder)
    stats = [(name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in parts.items()]
    key = recipe_hash(stats)
    with store.made("fingerprints", key) as draft:
        if draft is not None:
            sized = {name: (path.stat().st_size, _chunks(path)) for name, path in parts.items()}
            (draft / "fingerprint").write_text(_hash(sized))
    return (store.path("fingerprints", key) / "fingerprint").read_text()


def accept_offer(contents: Mapping[str, bytes | memoryview], wanted: str, store: Store) -> None:
    """Keep a base that the server sent. Raises BaseError where names or fingerprint are not as announced."""
    bad = [name for name in contents if not FILES.fullmatch(name)]
    if bad or _hash({name: (len(data), [data]) for name, data in contents.items()}) != wanted:
        raise BaseError(f"the offered base is not {wanted}" + (f": bad file names {bad}" if bad else ""))
    with store.made("bases", wanted) as draft:
        for name, data in contents.items() if draft is not None else ():
            (draft / name).write_bytes(data)  # type: ignore[operator]


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


def _checked(folder: Path) -> Path:
    names = files(folder)
    if "config.json" not in names:
        raise BaseError(f"{folder} is no model: it has no config.json")
    if not any(name.endswith(".safetensors") for name in names):
        raise BaseError(f"{folder} has no safetensors; other weight formats can run code and are not read")
    return folder

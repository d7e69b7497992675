"""The base: the pretrained model that all nodes start from. It crosses the wire only if a node lacks it.

A base is a folder as transformers reads it (config, safetensors, tokenizer or preprocessor; `task.files.contents` lists
what it may hold) and a fingerprint of its files. `task.models.finding` finds it for the server and for a node.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from task.config import Model
from task.data.encoding.tokenizer_file import check_tokenizer
from task.files.contents import (
    ADAPTED,
    ADAPTER,
    BARE,
    TOKENIZER,
    WANTED,
    BaseError,
    check,
    listed,
    weights,
)
from task.storage.store import Store, recipe_hash

__all__ = [
    "HUB_ID",
    "Base",
    "BaseError",
    "content_hash",
    "examine",
    "files",
    "fingerprint",
    "located",
    "named_folder",
    "sized",
]

LOG = logging.getLogger("flwr")
HUB_ID = re.compile(r"\w[\w.\-]*(/\w[\w.\-]*)?")
CHUNK = 2**22  # bytes read at once
FINGERPRINT = re.compile(r"[0-9a-f]{32}")
EDITION = 2  # of what is checked before a fingerprint is remembered


@dataclass(frozen=True, eq=False)
class Base:
    """A pretrained model on this machine's disk. If it is `bare`, nothing reads its weights, which may be missing: a
    model of it holds what is drawn at random, and NaN in place of weights (`task.models.bare`).

    Bases with one fingerprint are equal, wherever their files are.
    """

    name: str
    folder: Path
    fingerprint: str  # empty: not known, as its weights are not here
    bare: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Base) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.name, self.fingerprint or self.folder, self.bare


def named_folder(model: Model, paths: bool = True) -> Path:
    """Return the folder of a model given as a path or a hub id (fetched once, cached by huggingface_hub). Without
    `paths` a name is never a path: the disk is not searched.

    Code is fetched only if `model.trust-remote-code` is set. Raises BaseError.
    """
    folder = located(model, paths)
    check(folder)
    return folder


def located(model: Model, paths: bool = True, bare: bool = False) -> Path:
    """Return the folder of a model as `named_folder` does, without checking it. The weights of a `bare` one are not
    fetched."""
    name = model.name
    folder = Path(name).expanduser()
    if paths and folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(name):
        problem = "there is no such folder, and it is not a hub id" if paths else "paths are not followed here"
        raise BaseError(f"model.name = '{name}': {problem}", "model.name is no hub id, and this node has no such base")
    return _fetched(name, model.trust_remote_code, bare)


@lru_cache
def _fetched(name: str, with_code: bool, bare: bool) -> Path:
    """Fetch a model from the hub, once per process and not at every message and evaluation."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = [*(BARE if bare else WANTED), ADAPTER, ADAPTED, *(["*.py"] if with_code else [])]
        return Path(snapshot_download(name, allow_patterns=files))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        message = f"model.name = '{name}': no such folder, and the hub did not provide it: {error}"
        raise BaseError(message, "this node has no such base, and the hub did not provide it") from error


def files(folder: Path) -> dict[str, Path]:
    """Return the files of a base, by name. Raises BaseError for a file that may not be read."""
    return listed(folder)


def examine(folder: Path) -> None:
    """Raise BaseError for a base with files that it may not have, or with missing ones. Runs once, not in every
    process: it takes as long as reading the tokenizer."""
    found = check(folder)
    weights(found)
    if TOKENIZER in found:
        check_tokenizer(found[TOKENIZER])


def fingerprint(folder: Path, store: Store) -> str:
    """Return a hash of the names and bytes of a base's files, cached by path, size and modification time. Raises
    BaseError for a base that may not be read."""
    parts = files(folder)
    stats = [(name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in parts.items()]
    key = recipe_hash([EDITION, stats])
    with store.made("fingerprints", key) as draft:
        if draft is not None:
            examine(folder)
            (draft / "fingerprint").write_text(content_hash(sized(parts)))
    return (store.path("fingerprints", key) / "fingerprint").read_text()


def sized(parts: Mapping[str, Path]) -> dict[str, tuple[int, Iterable[bytes]]]:
    """Return the size and the bytes, in pieces, of every file."""
    return {name: (path.stat().st_size, _chunks(path)) for name, path in parts.items()}


def content_hash(contents: Mapping[str, tuple[int, Iterable[bytes | memoryview]]]) -> str:
    """Return a hash of every file's name, size and bytes. Bytes come in pieces: models may be larger than memory."""
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

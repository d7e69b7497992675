"""States on disk: safetensors files that are written whole or not at all, survive a power cut, and are verified when
read.

The entries of a journal lie in files of their own, named by the journal position that they lead to, and are written
once. So the cost of a round's checkpoint does not grow with the number of rounds, and states of one run share their
entries.

Tensors that only the server has (`State.server`) lie in the same file, under names that begin with "server/". States of
version 0.1 kept them among the others; they are recognised by their names when read.

Every file has two hashes in its header: one of its description and one of its tensors. They detect flipped bits, not an
adversary, who could write matching hashes.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from strategies.algebra.tensors import Tensors, raw
from strategies.exchange.types import BASE_POSITION, Entry, State
from task.modes import as_the_folder
from task.storage.room import room

LAST, BEST = "last.safetensors", "best.safetensors"
JOURNAL = "journal"  # the folder of entries, next to the files of states
POSITION = "journal-mark"  # of a state: where its journal ends
SERVER = "server/"  # prefix of tensor names in the file of a state; in the description, the number of such tensors
FORMER = re.compile("waiting .+|velocity")  # names in version 0.1: sa-fedlora's, and ferret's next to a pool
ABOUT, ABOUT_HASH, TENSORS_HASH = "about", "about-xxh3", "tensors-xxh3"  # keys of a file's header
OTHERS = "the best state or an earlier checkpoint may still be whole"
LOG = logging.getLogger("flwr")


class Damaged(ValueError):
    """A file whose bytes are not those that were written."""


def kept(round: int | str) -> str:
    """Return the name of a state that is kept besides the newest one."""
    return f"round-{round}.safetensors"


def save(path: Path, state: State, about: dict[str, Any]) -> None:
    """Write `state` and the description `about` (plain JSON) to `path`, replacing what was there.

    If that fails, the old file is unchanged. Raises TypeError for values that are not JSON, ValueError for a tensor
    whose name begins with the server's prefix.
    """
    if taken := [name for name in state.tensors if name.startswith(SERVER)]:
        raise ValueError(f"the tensor '{taken[0]}' must not have a name that begins with '{SERVER}': rename it")
    text = json.dumps(about | {POSITION: state.positions[-1], SERVER: len(state.server)})
    for number in range(_written(path, state), len(state.journal)):
        write_entry(_place(path, state.positions[number + 1]), state.journal[number], state.positions[number])
    _write(path, state.tensors | {SERVER + name: tensor for name, tensor in state.server.items()}, text)


def _written(path: Path, state: State) -> int:
    """Return how many entries are on the disk. They are written in order, so the newest one found decides."""
    there = (number for number in range(len(state.journal), 0, -1) if _place(path, state.positions[number]).exists())
    return next(there, 0)


def load(path: Path) -> tuple[State, dict[str, Any]]:
    """Return the state at `path` and its description. Raises OSError, and Damaged with the file that is not whole."""
    named, about = _read(path)
    tensors, server = _parted(named) if SERVER in about else _parted_of_version_0_1(named)
    about.pop(SERVER, None)
    position, journal = about.pop(POSITION), []
    while position != BASE_POSITION:
        entry, position = read_entry(_place(path, position))
        journal.append(entry)
    return State(tensors, tuple(reversed(journal)), server=server), about


def _parted(named: Tensors) -> tuple[Tensors, Tensors]:
    """Return the tensors of a state, and the tensors that only the server has."""
    server = {name.removeprefix(SERVER): tensor for name, tensor in named.items() if name.startswith(SERVER)}
    return {name: tensor for name, tensor in named.items() if not name.startswith(SERVER)}, server


def _parted_of_version_0_1(named: Tensors) -> tuple[Tensors, Tensors]:
    server = {name: tensor for name, tensor in named.items() if FORMER.fullmatch(name)}
    return {name: tensor for name, tensor in named.items() if name not in server}, server


def write_entry(path: Path, entry: Entry, before: str) -> None:
    """Write one entry of a journal, and the journal position before it."""
    _write(path, entry.tensors, json.dumps({"round": entry.round, "seed": entry.seed, "before": before}))


def read_entry(path: Path) -> tuple[Entry, str]:
    """Return the entry at `path`, and the journal position before it. Raises OSError, Damaged."""
    tensors, about = _read(path)
    return Entry(about["round"], about["seed"], tensors), about["before"]


def position_before(path: Path) -> str:
    """Return the journal position before the entry at `path`, without its tensors."""
    return str(about(path)["before"])


def about(path: Path) -> dict[str, Any]:
    """Return the description of the state or entry at `path`, without its tensors. Raises OSError, Damaged."""
    with _opened(path) as file:
        return _about(path, file)


def _place(path: Path, position: str) -> Path:
    return path.parent / JOURNAL / f"{position}.safetensors"


def _write(path: Path, tensors: Mapping[str, torch.Tensor], about: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    kept = _apart(tensors)
    hashes = {ABOUT_HASH: xxhash.xxh3_128_hexdigest(about.encode()), TENSORS_HASH: _hash(kept)}
    try:
        with room(path.parent):
            save_file(kept, draft, metadata={ABOUT: about} | hashes)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    as_the_folder(draft)
    sync(draft)  # else a power cut could leave the name without the content
    os.replace(draft, path)
    sync(path.parent)  # and a later write without this one


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    with _opened(path) as file:
        about = _about(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check(path, file.metadata(), TENSORS_HASH, _hash(tensors))
        return tensors, about


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged or cut off: {error}") from error


def _about(path: Path, file: Any) -> dict[str, Any]:
    header = file.metadata() or {}
    text = header.get(ABOUT, "")
    _check(path, header, ABOUT_HASH, xxhash.xxh3_128_hexdigest(text.encode()))
    try:
        said: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise Damaged(f"{path} is damaged, or is not a file of a run: {error}") from error
    return said


def _check(path: Path, header: Mapping[str, str], key: str, found: str) -> None:
    if ABOUT_HASH not in header and TENSORS_HASH not in header:
        _unverified(path.parent)
    elif header.get(key) != found:
        what = "its description" if key == ABOUT_HASH else "its tensors"
        raise Damaged(f"{path} is damaged: {what} is not what was written (xxh3 {found}, not {header.get(key)})")


@lru_cache
def _unverified(folder: Path) -> None:
    """Warn once per process and folder."""
    LOG.warning("%s is of an earlier version, which kept no hashes: it cannot be verified", folder)


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of every tensor's name, dtype, shape and bytes."""
    hashed = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        hashed.update(raw(tensor))
    return hashed.hexdigest()


def _apart(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return these tensors, and copies of those that share memory with others or do not fill theirs in order, which
    safetensors refuses."""
    apart, seen = {}, set[int]()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        apart[name] = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
    return apart

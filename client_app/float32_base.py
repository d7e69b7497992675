"""A base in 16 bits that runs hold in float32: converted once, into the node's store, and mapped by every process.

Libraries map the files of a base in the model's dtype, and the processes of a machine share their pages. They convert
files of another dtype, which gives each process, and each message, a copy of its own. Only conversions that change no
number are kept here: a base of 32 bits in 16 is left to the libraries, which keep some layers as they are.
"""

import logging
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from task.config import TaskConfig
from task.files.contents import is_weights
from task.models.base import Base, files
from task.storage.retention import trim
from task.storage.store import Store

LOG = logging.getLogger("flwr")
KIND = "widened"  # the kind of thing in a store
NARROW = (torch.bfloat16, torch.float16)
FREE = 2  # times the size of the copy that the disk must have free


def widened(base: Base, config: TaskConfig, store: Store) -> Base:
    """Return the base with its weights in float32, from the store; the same base if processes would not share it: for
    another dtype, a tuning that trains the base, quantised weights, or without room."""
    shares = config.tuning.adds and not config.model.quantized and not config.model.trust_remote_code
    if config.model.dtype != "float32" or not shares:
        return base
    if not store.holds(KIND, base.fingerprint) and not _written(base, store):
        return base
    return Base(base.name, store.path(KIND, base.fingerprint), base.fingerprint)


def _written(base: Base, store: Store) -> bool:
    """Write the copy, one file at a time in memory; return whether it was worth it and had room."""
    parts = files(base.folder)
    weights = [path for name, path in parts.items() if is_weights(name)]
    if not all(_is_narrow(path) for path in weights):
        return False
    size = 2 * sum(path.stat().st_size for path in weights)
    store.root.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(store.root).free < FREE * size or trim(store, size):
        LOG.info(
            "the base is converted to float32 in every process: the store has no room for a copy of %d bytes", size
        )
        return False
    with store.made(KIND, base.fingerprint, base.name) as draft:
        if draft is not None:
            for name, path in parts.items():
                _copy(path, draft / name)
    return True


def _is_narrow(path: Path) -> bool:
    """Return whether all tensors of a file are in 16 bits. It is mapped, not read."""
    return all(tensor.dtype in NARROW for tensor in load_file(path).values())


def _copy(path: Path, place: Path) -> None:
    if is_weights(path.name):
        save_file({name: tensor.float() for name, tensor in load_file(path).items()}, place, {"format": "pt"})
    else:
        shutil.copyfile(path, place)

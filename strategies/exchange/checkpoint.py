"""A state on disk: safetensors files that appear whole or not at all, and survive a power cut.

The entries of a journal lie beside the tensors, a file each, under the mark that they lead to, and are written once:
what it costs to keep a round does not grow with the number of rounds, and states of one run share their entries.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from strategies.algebra.tensors import Tensors
from strategies.exchange.vocabulary import BASE_MARK, Entry, State

LAST = "last.safetensors"
JOURNAL = "journal"  # the folder of entries, beside the files of states
MARK = "journal-mark"  # of a state: where its journal ends


def save(path: Path, state: State, about: dict[str, Any]) -> None:
    """Write `state` and what `about` says of it (anything JSON can hold) to `path`, in place of what was there.

    A failure leaves that as it was. Raises TypeError for what JSON cannot hold.
    """
    text = json.dumps(about | {MARK: state.marks[-1]})
    for number in range(_written(path, state), len(state.journal)):
        write_entry(_place(path, state.marks[number + 1]), state.journal[number], state.marks[number])
    _write(path, state.tensors, text)


def _written(path: Path, state: State) -> int:
    """How many entries are on the disk. They are written in order, so the newest one that is there tells."""
    there = (number for number in range(len(state.journal), 0, -1) if _place(path, state.marks[number]).exists())
    return next(there, 0)


def load(path: Path) -> tuple[State, dict[str, Any]]:
    """The state at `path` and what was said of it. Raises OSError, SafetensorError, KeyError, ValueError."""
    tensors, about = _read(path)
    mark, journal = about.pop(MARK), []
    while mark != BASE_MARK:
        entry, mark = read_entry(_place(path, mark))
        journal.append(entry)
    return State(tensors, tuple(reversed(journal))), about


def write_entry(path: Path, entry: Entry, before: str) -> None:
    """Write one entry of a journal, and the mark that it follows on."""
    _write(path, entry.tensors, json.dumps({"round": entry.round, "seed": entry.seed, "before": before}))


def read_entry(path: Path) -> tuple[Entry, str]:
    """The entry at `path`, and the mark that it follows on."""
    tensors, about = _read(path)
    return Entry(about["round"], about["seed"], tensors), about["before"]


def mark_before(path: Path) -> str:
    """The mark that the entry at `path` follows on, without its tensors."""
    return str(about(path)["before"])


def about(path: Path) -> dict[str, Any]:
    """What was said of the state or entry at `path`, without its tensors."""
    with safe_open(path, framework="pt") as file:
        said: dict[str, Any] = json.loads(file.metadata()["about"])
        return said


def _place(path: Path, mark: str) -> Path:
    return path.parent / JOURNAL / f"{mark}.safetensors"


def _write(path: Path, tensors: Mapping[str, torch.Tensor], about: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    save_file({name: _own(tensor) for name, tensor in tensors.items()}, draft, metadata={"about": about})
    _sync(draft)  # else a power cut could leave the name without the content
    os.replace(draft, path)
    _sync(path.parent)  # and what is written later without this


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with memory of its own: safetensors refuses tensors that share some."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)

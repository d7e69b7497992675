"""A state on disk: one safetensors file that appears whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from strategies.algebra.tensors import Tensors
from strategies.exchange.vocabulary import Entry, State

LAST = "last.safetensors"


def save(path: Path, state: State, about: dict[str, Any]) -> None:
    """Write `state` and what `about` says of it (anything JSON can hold) atomically to `path`."""
    named: Tensors = {f"tensors/{name}": _own(tensor) for name, tensor in state.tensors.items()}
    for number, entry in enumerate(state.journal):
        named |= {f"journal/{number}/{name}": _own(t) for name, t in entry.tensors.items()}
    about = about | {"journal": [[entry.round, entry.seed] for entry in state.journal]}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    save_file(named, draft, metadata={"about": json.dumps(about)})
    os.replace(draft, path)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with memory of its own: safetensors refuses tensors that share some."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def load(path: Path) -> tuple[State, dict[str, Any]]:
    """The state at `path` and what was said of it."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    entries: list[Tensors] = [{} for _ in about["journal"]]
    tensors: Tensors = {}
    for name, tensor in named.items():
        section, rest = name.split("/", 1)
        if section == "tensors":
            tensors[rest] = tensor
        else:
            number, own = rest.split("/", 1)
            entries[int(number)][own] = tensor
    journal = tuple(Entry(r, s, t) for (r, s), t in zip(about.pop("journal"), entries, strict=True))
    return State(tensors, journal), about

"""The head of a classifier: its modules, and the class of each of its rows."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

GENERIC = re.compile(r"label_(\d+)")  # transformers' name of an unnamed class
POOLER = re.compile(r"(^|\.)pooler(\.|$)")  # a layer between body and head; language models are saved without it


def by_labels(module: Any) -> dict[str, int]:
    """Return the parameters whose shape depends on the number of labels, each with that dimension.

    The model is built again for one more label, without memory for its numbers.
    """
    from transformers.initialization import no_init_weights

    config = deepcopy(module.config)
    config.num_labels = config.num_labels + 1
    with torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
        other = dict(type(module)(config).named_parameters())
    found: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        differing = [d for d, sizes in enumerate(zip(parameter.shape, other[name].shape)) if sizes[0] != sizes[1]]
        if differing:
            found[name] = differing[0]
    return found


def head_modules(module: Any, labelled: dict[str, int], drawn: list[str]) -> list[str]:
    """Return the names of the modules of a classifier's head.

    These are the modules outside the pretrained body if transformers names one; else the top-level modules that have a
    parameter of `labelled`. A layer inside the body belongs to the head if it computes the classes or pools for them,
    and its values are `drawn`: a new layer must be trained.
    """
    body = getattr(module, "base_model_prefix", "")
    if not isinstance(getattr(module, body, None), nn.Module):
        return sorted({name.split(".")[0] for name in labelled})
    outside = [n for n, child in module.named_children() if n != body and any(True for _ in child.parameters())]
    ends = [name for name in drawn if name.startswith(body + ".") and (name in labelled or POOLER.search(name))]
    return outside + sorted({name.rsplit(".", 1)[0] for name in ends})


def still_parts(module: nn.Module, head: Iterable[torch.Tensor]) -> list[nn.Module]:
    """Return the largest parts of a model that have parameters, and none of the `head`: its body, unless parts of the
    head are inside. A copy of a head that peft keeps is no part."""
    own = {id(tensor) for tensor in head}
    if not any(id(parameter) in own for parameter in module.parameters()):
        return [module] if any(True for _ in module.parameters()) else []
    parts = [part for name, part in module.named_children() if name != "original_module"]
    return [found for part in parts for found in still_parts(part, head)]


def matching_rows(own: Mapping[int, object], names: tuple[str, ...]) -> list[int] | None:
    """Return the row of the base's head for every class in `names`; `own` are the names of these rows. Return None if
    the names differ: a class of another name is another class, whatever its position. A single output is a number
    rather than a class, and the same by any name."""
    if len(own) == len(names) == 1:
        return [0]
    stored, wanted = [str(own.get(row, "")) for row in range(len(own))], list(names)
    for known, asked in ((list(map(_plain, stored)), list(map(_plain, wanted))), (stored, wanted)):
        if sorted(known) == sorted(asked) and len(set(known)) == len(known):
            return [known.index(name) for name in asked]
    return None


def reorder(module: nn.Module, labelled: dict[str, int], rows: list[int]) -> None:
    """Reorder the rows of a head to the order of `rows`."""
    for name, dimension in labelled.items():
        parameter = module.get_parameter(name)
        parameter.data = parameter.data.index_select(dimension, torch.tensor(rows))


def redraw(module: Any, labelled: dict[str, int]) -> None:
    """Draw the rows of a head anew, as transformers draws a head that a base lacks."""
    for name in labelled:
        parameter = module.get_parameter(name)
        # a bare base has no memory for them
        parameter.data = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        parameter._is_hf_initialized = False
        parts = name.split(".")[:-1]
        for depth in range(len(parts) + 1):
            module.get_submodule(".".join(parts[:depth]))._is_hf_initialized = False
    module.initialize_weights()


def _plain(name: str) -> str:
    """Return a class name for comparison: `LABEL_3`, transformers' name of an unnamed class, becomes its number."""
    plain = name.strip().casefold()
    generic = GENERIC.fullmatch(plain)
    return generic[1] if generic else plain

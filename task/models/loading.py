"""From the files of a base to a plain transformers model and its head."""

import importlib
from contextlib import nullcontext
from typing import Any, NamedTuple

from torch import nn

from task.config import TaskConfig
from task.data.encoding.texts import padding, tokenizer_in
from task.data.encoding.vocabulary import check_fit
from task.kinds import registry as kinds
from task.models import heads
from task.models.base import Base, BaseError
from task.models.missing_weights import counted
from task.models.reading import Read, own_settings, read
from task.process_memory import dropping_file_pages
from task.tunings.base import Head
from task.tunings.parts.trainable import inside

LARGE = 0.5  # a supposed head with a larger share of the parameters is reported


class Loaded(NamedTuple):
    """A model, its head, and notices on how the base was read."""

    module: nn.Module
    head: Head
    notices: tuple[str, ...]


def warm_up() -> None:
    """Import what `loaded` needs, which takes seconds, while the process waits for others anyway."""
    importlib.import_module("transformers.modeling_utils")


def loaded(base: Base, config: TaskConfig) -> Loaded:
    """Return the model for `task.kind`; most kinds have a head for `data.labels`. A head that the base lacks, or has
    for other classes, is drawn from torch's global random state; nothing else may be missing.

    Raises BaseError if the base is no model of this kind or lacks weights of its body, DataError if a text model has no
    tokenizer that fits it.
    """
    return (_with_head if kinds.of(config).drawn_head else _pretrained)(base, config)


def _pretrained(base: Base, config: TaskConfig) -> Loaded:
    model = read(base, config, {})
    _check(model.module, base, config)
    check_fit(tokenizer_in(base.folder), model.module, base.folder)
    return Loaded(model.module, Head(_output_embedding(model.module), along=False), tuple(model.said))


def _with_head(base: Base, config: TaskConfig) -> Loaded:
    kind = kinds.of(config)
    options, notices = kind.model_settings(config.data.labels), []
    own = own_settings(base, config)
    if not kind.images:
        tokenizer = tokenizer_in(base.folder)
        options |= _special_ids(tokenizer, base, own)
    if kind.problem_type and own.problem_type not in (None, kind.problem_type):
        theirs = f"the base's problem_type is '{own.problem_type!s:.40}'"
        notices.append(f"{theirs}; for this task it is set to '{kind.problem_type}'")
    model = read(base, config, options)
    _check(model.module, base, config)
    if not kind.images:
        check_fit(tokenizer, model.module, base.folder)
        _check_positions(base, own.pad_token_id, model.module)
    head, said = _head(model, own.id2label, config.data.labels)
    return Loaded(model.module, head, (*notices, *said, *model.said))


def _check(module: nn.Module, base: Base, config: TaskConfig) -> None:
    """Raise BaseError if the model cannot learn the task. A check may run the model, so a bare one is left out."""
    if not base.bare:
        with dropping_file_pages(module) if config.model.quantized else nullcontext():
            kinds.of(config).check_model(module, base.name)


def _special_ids(tokenizer: Any, base: Base, own: Any) -> dict[str, Any]:
    """Return the special token ids of the tokenizer. Models find the end of a row by them, so both must agree."""
    ids = {"pad_token_id": padding(tokenizer, base.folder)}
    if own.is_encoder_decoder and tokenizer.eos_token_id is not None:
        ids["eos_token_id"] = int(tokenizer.eos_token_id)
    return ids


def _head(model: Read, own: dict[int, object], names: tuple[str, ...]) -> tuple[Head, list[str]]:
    """Return the head, with its rows in the order of these classes, and notices on it."""
    drawn, said = model.report.drawn, []
    if not model.labelled.keys() & set(drawn):
        rows = heads.matching_rows(own, names)
        if rows is None:
            heads.redraw(model.module, model.labelled)
            drawn = [*drawn, *model.labelled]
            said.append(f"the base's own head is for other classes: {counted(list(map(str, own.values())))}")
        elif rows != sorted(rows):
            heads.reorder(model.module, model.labelled, rows)
            said.append(
                "the base's head has these classes in another order; its rows are put in the order of data.labels"
            )
    modules = heads.head_modules(model.module, model.labelled, drawn)
    if drawn:
        said.append(f"the classifier head ({', '.join(drawn)}) is drawn at random")
    if (share := _share(model.module, modules)) > LARGE:
        said.append(f"the head ({', '.join(modules)}) has {share:.0%} of the model's parameters, and trains whole")
    return Head(modules, along=True, new=bool(drawn)), said


def _share(module: nn.Module, modules: list[str]) -> float:
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    return sum(size for name, size in sizes.items() if inside(name, modules)) / sum(sizes.values())


def _check_positions(base: Base, own: object, module: Any) -> None:
    """Raise BaseError if positions are counted from the pad id, as in RoBERTa, and the base's pad id is another."""
    pad = module.config.pad_token_id
    counting = any(
        name.endswith("position_embeddings") and getattr(part, "padding_idx", None) == pad
        for name, part in module.named_modules()
    )
    if own is not None and own != pad and counting:
        problem = (
            f"its tokenizer pads with {pad}, its config.json says pad_token_id = {own!s:.20}, and this model counts "
            "positions from it; make them equal"
        )
        raise BaseError(f"model.name = '{base.name}': {problem}", f"the base: {problem}")


def _output_embedding(module: Any) -> list[str]:
    """Return all modules that share its weight; with tied embeddings the input embedding is one of them."""
    output = module.get_output_embeddings()
    weight = getattr(output, "weight", output)
    return [
        name
        for name, child in module.named_modules()
        if weight is not None and getattr(child, "weight", None) is weight
    ]

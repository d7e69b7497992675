"""Read a base's weights into a transformers model: everything its body needs, under any prefix."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file

from task.config import TaskConfig
from task.device import ran_out
from task.files.contents import check, has_weights, is_weights, weights
from task.files.library_copy import shown
from task.files.size_limit import no_larger_than
from task.kinds import registry as kinds
from task.models.bare import Shapes, blank, take_out
from task.models.base import Base, BaseError
from task.models.heads import by_labels, head_modules
from task.models.missing_weights import Report, check_body, prefixes, unused

TRIES = 4  # prefixes to try


@dataclass(frozen=True)
class Read:
    """A model, the report of its load, its parameters whose shape follows the number of labels, and notices."""

    module: Any
    report: Report
    labelled: dict[str, int]
    said: tuple[str, ...]


def read(base: Base, config: TaskConfig, options: dict[str, Any]) -> Read:
    """Return the model of `task.kind` with these settings in place of the base's own. Raises BaseError."""
    files = check(base.folder, base.bare)
    shapes = {} if base.bare and not has_weights(files) else weights(files)  # which refuses files elsewhere
    state = torch.get_rng_state()
    module, report = (_bare if base.bare else _loaded)(base, config, options, shapes)
    kind = kinds.of(config)
    labelled = by_labels(module) if kind.drawn_head else {}

    def lacks(found: Report) -> bool:
        return bool(found.lacking(_ends(module, labelled, found)))

    said = []
    if lacks(report):
        loaded = {}
        for prefix in prefixes(shapes)[:TRIES]:
            torch.set_rng_state(state)  # a head is drawn as in the first try
            stored = blank(module.config, config, shapes)[1] if base.bare else _stored(files)
            loaded[prefix] = _loaded_under(prefix, stored, type(module), module.config)
        fitting = [prefix for prefix, (_, found) in loaded.items() if not lacks(found)]
        if [prefix for prefix in fitting if not prefix.startswith(fitting[0])]:
            problem = f"its weights are there more than once, under {' and '.join(fitting)}; keep one of them"
            raise BaseError(f"model.name = '{base.name}': {problem}", "the base has its weights more than once")
        if fitting:
            module, report = loaded[fitting[0]]
            said.append(f"the base's weights are read under '{fitting[0]}', a prefix of their names")
    check_body(base, report, _ends(module, labelled, report), shapes, "" if kind.drawn_head else kind.name)
    if left := unused(report):
        said.append(left)
    if base.bare:
        take_out(module, report.drawn)
    module.name_or_path = module.config.name_or_path = str(base.folder)
    return Read(module, report, labelled, tuple(said))


def own_settings(base: Base, config: TaskConfig, options: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Return the base's settings as transformers reads them, with defaults for missing keys and `options` in place of
    its own. Raises BaseError."""
    import transformers

    check(base.folder, base.bare)
    try:
        with _visible(base, config) as folder:
            return transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=config.model.trust_remote_code, **options
            )
    except Exception as error:
        raise _refusal(error, base, config) from error


def _ends(module: Any, labelled: dict[str, int], report: Report) -> list[str]:
    """Return the modules that may be initialised at random; none if the kind draws no head."""
    return head_modules(module, labelled, report.drawn) if labelled else []


def _loaded(base: Base, config: TaskConfig, options: dict[str, Any], shapes: Shapes) -> tuple[Any, Report]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    auto = getattr(transformers, kinds.of(config).auto_class)
    try:
        with _visible(base, config) as folder, no_larger_than(shapes):
            module, loading = auto.from_pretrained(
                folder,
                **options,
                ignore_mismatched_sizes=True,  # a head for other labels is drawn anew; others are reported
                dtype=getattr(torch, config.model.dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=config.model.trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:
        raise _refusal(error, base, config) from error
    return module, Report.of(loading)


def _bare(base: Base, config: TaskConfig, options: dict[str, Any], shapes: Shapes) -> tuple[Any, Report]:
    """Return the model as `_loaded` does, with zeros that take no memory for weights."""
    settings = own_settings(base, config, options)
    try:
        kind, stored = blank(settings, config, shapes)
        settings.dtype = getattr(torch, config.model.dtype)
        return _loaded_under("", stored, kind, settings)
    except Exception as error:
        raise _refusal(error, base, config) from error


def _stored(files: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """Return the tensors in a base's files."""
    stored: dict[str, torch.Tensor] = {}
    for name in files:
        if is_weights(name):
            stored |= load_file(files[name])
    return stored


def _loaded_under(prefix: str, stored: Mapping[str, torch.Tensor], kind: Any, settings: Any) -> tuple[Any, Report]:
    """Return the model built from the weights under `prefix`, with the prefix removed."""
    renamed = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    module, loading = kind.from_pretrained(
        None,
        config=settings,
        state_dict=renamed,
        ignore_mismatched_sizes=True,
        dtype=settings.dtype,
        output_loading_info=True,
    )
    return module, Report.of(loading)


@contextmanager
def _visible(base: Base, config: TaskConfig) -> Iterator[Path]:
    """Yield the folder that the library reads: the base itself if its own code may run, else a checked copy."""
    with nullcontext(base.folder) if config.model.trust_remote_code else shown(base.folder) as folder:
        yield folder


def _refusal(error: Exception, base: Base, config: TaskConfig) -> Exception:
    """Return the error to raise for a library error: BaseError, unless memory ran out."""
    if isinstance(error, BaseError) or ran_out(error):
        return error
    if "Unrecognized configuration class" in str(error):
        problem = f"is not a model for task.kind = '{config.task.kind.name}'"
    else:
        problem = f"cannot be loaded: {type(error).__name__}"
        return BaseError(f"model.name = '{base.name}' {problem}: {error}", f"the base {problem}")
    return BaseError(f"model.name = '{base.name}' {problem}", f"the base {problem}")

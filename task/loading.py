"""From the files of a base to a plain transformers model and the head that it ends in."""

import importlib
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from task.base import Base, BaseError
from task.config import TaskConfig
from task.contents import check, weights
from task.device import ran_out
from task.shown import shown
from task.sized import no_larger_than
from task.texts import pad_id
from task.tuning import Head


def warm_up() -> None:
    """Import what `loaded` takes: seconds, for whoever has to wait for others anyway."""
    importlib.import_module("transformers.modeling_utils")


def loaded(base: Base, config: TaskConfig) -> tuple[nn.Module, Head]:
    """The model for `task.kind`, a classifier with a head for `data.labels`. Weights that the base lacks are drawn from
    torch's global random state.

    Raises BaseError for a base that is no model of this kind.
    """
    module, fresh = _read(base, config)
    if config.causal:
        _check_causal(base, module, fresh)
        return module, Head(_output_embedding(module), along=False)
    if config.task.kind == "text-classification" and module.config.pad_token_id is None:  # type: ignore
        module.config.pad_token_id = pad_id(base.folder)  # type: ignore  # heads of causal models find a row's end by it
    return module, Head(_outermost(module, fresh), along=True)


def _read(base: Base, config: TaskConfig) -> tuple[nn.Module, list[str]]:
    """The model, and the names of the tensors that the base has no weights for."""
    import transformers

    import task.perceptron  # noqa: F401  registers a kind of model that transformers lacks

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kinds: dict[str, Any] = {
        "image-classification": transformers.AutoModelForImageClassification,
        "text-classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }
    shapes = weights(check(base.folder))
    code = config.model.trust_remote_code  # reads what it likes
    try:
        with nullcontext(base.folder) if code else shown(base.folder) as folder, no_larger_than(shapes):
            module, loading = kinds[config.task.kind].from_pretrained(
                folder,
                **({} if config.causal else _labelled(config.data.labels)),
                dtype=getattr(torch, config.model.dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=code,
                output_loading_info=True,
            )
    except Exception as error:
        raise _refusal(error, base, config) from error
    module.name_or_path = module.config.name_or_path = str(base.folder)
    return module, [*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])]


def _refusal(error: Exception, base: Base, config: TaskConfig) -> Exception:
    """What an error of the library means: a base that cannot be used, but where it is a lack of memory."""
    if isinstance(error, BaseError) or ran_out(error):
        return error
    if "Unrecognized configuration class" in str(error):
        problem = f"is no model for task.kind = '{config.task.kind}'"
    else:
        problem = f"cannot be loaded: {type(error).__name__}"
        return BaseError(f"model.name = '{base.name}' {problem}: {error}", f"the base {problem}")
    return BaseError(f"model.name = '{base.name}' {problem}", f"the base {problem}")


def _labelled(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "ignore_mismatched_sizes": True,  # a head for other labels is replaced by a fresh one
    }


def _outermost(module: nn.Module, fresh: list[str]) -> list[str]:
    """Modules outside the pretrained body, and those inside it that the base has no weights for."""
    body = getattr(module, "base_model_prefix", "")
    outside = [n for n, child in module.named_children() if n != body and any(True for _ in child.parameters())]
    inside = {name.rsplit(".", 1)[0] for name in fresh if name.startswith(body + ".")}
    return outside + sorted(inside)


def _output_embedding(module: Any) -> list[str]:
    """All modules that have its weight as their own: where it is tied, the input embedding is another."""
    output = module.get_output_embeddings()
    weight = getattr(output, "weight", output)
    return [
        name
        for name, child in module.named_modules()
        if weight is not None and getattr(child, "weight", None) is weight
    ]


def _check_causal(base: Base, module: nn.Module, fresh: list[str]) -> None:
    """BaseError for what loads as a causal model and is none: nothing would train what it lacks, and a model that sees
    the tokens to come has nothing to predict.
    """
    if fresh:
        raise BaseError(
            f"model.name = '{base.name}' has no weights for {fresh[0]}; task.kind = 'causal-lm' needs a model that was "
            "pretrained as one",
            "the base lacks weights; task.kind = 'causal-lm' needs a model that was pretrained as one",
        )
    module.eval()
    with torch.no_grad():
        one, other = (module(input_ids=torch.tensor([[0, following]])).logits[0, 0] for following in (1, 2))
    near = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().max())  # equal, but where experts are batched otherwise
    if float((one - other).abs().max()) > near:
        raise BaseError(
            f"model.name = '{base.name}' sees the tokens that it shall predict; task.kind = 'causal-lm' needs a causal "
            "language model",
            "the base sees the tokens that it shall predict; task.kind = 'causal-lm' needs a causal language model",
        )

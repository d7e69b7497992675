"""Find a model's linear layers, blocks and norm layers for a tuning, and set what trains."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from task.tunings.base import Head, TuningError

# Linear layers whose weights these models read directly, bypassing an adapter: on an accelerator, or always.
OWN_READING = ("mamba2", "falcon_h1", "nemotron_h", "bamba", "granitemoehybrid", "zamba2")
BYPASSED = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(OWN_READING, ("out_proj",)),
}


def set_trainable(module: nn.Module, trains: Callable[[str], bool]) -> nn.Module:
    """Set the parameters to train for whose names `trains` is true, and no others. Raises TuningError for none."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains(name))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TuningError("the tuning trains nothing in this model; use tuning = 'lora' or 'full'")
    return module


def inside(name: str, modules: Iterable[str]) -> bool:
    """Return whether `name` is one of the modules or inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def ends(name: str, ending: str) -> bool:
    """Return whether a dotted name ends in `ending`, compared by whole parts."""
    return name == ending or name.endswith("." + ending)


def linear_layers(module: nn.Module, head: Head, tuning: str) -> list[str]:
    """Return the names of the linear layers outside the head that an adapter reaches. Raises TuningError for none."""
    if not (linear := adaptable(module, head)):
        raise TuningError(
            f"tuning = '{tuning}' needs linear layers (torch.nn.Linear), and this model has none; use 'full'"
        )
    return linear


def adaptable(module: Any, head: Head) -> list[str]:
    """Return the names of the linear layers outside the head, without those whose weights the model reads directly."""
    linear = [n for n, m in module.named_modules() if is_linear(m) and not inside(n, head.modules)]
    bypassed = BYPASSED.get(getattr(module.config, "model_type", ""), ())
    return [name for name in linear if not any(ends(name, ending) for ending in bypassed)]


def is_linear(layer: nn.Module) -> bool:
    """Return whether `layer` is a linear layer, of torch or of GPT-2 (`Conv1D`)."""
    return isinstance(layer, nn.Linear) or is_transposed(layer)


def is_transposed(layer: nn.Module) -> bool:
    """Return whether `layer` is GPT-2's linear layer (`Conv1D`), whose weight is inputs x outputs."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def chosen(layers: list[str], endings: tuple[str, ...], option: str, noun: str = "linear layer") -> list[str]:
    """Return the layers whose names have one of the endings. Raises TuningError for an ending that matches none; it
    calls a layer `noun`."""
    unmatched = [ending for ending in endings if not any(ends(name, ending) for name in layers)]
    if unmatched:
        there = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
        raise TuningError(f"{option}: no {noun} ends in {', '.join(unmatched)}; there are {there}")
    return [name for name in layers if any(ends(name, ending) for ending in endings)]


def is_norm(layer: nn.Module) -> bool:
    """Return whether `layer` is a normalisation layer with weights; transformers' dozens of classes share the name."""
    return "norm" in type(layer).__name__.lower() and any(True for _ in layer.parameters(recurse=False))


def blocks(module: nn.Module, tuning: str) -> list[nn.Module]:
    """Return the transformer blocks, first to last. Raises TuningError for a model of another kind."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    rows = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    found = [block for row in rows for block in row if isinstance(block, GradientCheckpointingLayer)]
    if not found:
        raise TuningError(f"tuning = '{tuning}' needs a transformer of blocks, which this model is not; use 'lora'")
    return found


def hidden_size(module: Any, layers: Iterable[nn.Module], tuning: str) -> int:
    """Return the number of features of a token between blocks. Raises TuningError if it differs between blocks."""
    size = getattr(module.config.get_text_config(), "hidden_size", None)
    for block in layers:
        if not any(p.numel() == size for m in block.modules() if is_norm(m) for p in m.parameters(recurse=False)):
            there = f"not all of this model's have {size} features" if size else "this model's have several"
            raise TuningError(f"tuning = '{tuning}' needs blocks of one width, and {there}; use 'lora'")
    return int(size or 0)

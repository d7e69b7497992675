"""The names of a model's tensors on the wire: those of the plain transformers model, and of what a tuning adds."""

from collections.abc import Mapping

import torch
from torch import nn

from task.tunings.base import Tuning
from task.tunings.parts.trainable import is_transposed

ADAPTER = "default"  # peft's name of the one adapter a model has


def trained(module: nn.Module, tuning: Tuning) -> dict[str, torch.Tensor]:
    """Return the trainable parameters, and the running statistics of normalisation layers if the tuning has them."""
    names = _names(module, tuning)
    named: dict[str, torch.Tensor] = {names[n]: p for n, p in module.named_parameters() if p.requires_grad}
    if tuning.running_statistics:
        saved = set(module.state_dict().keys())
        named |= {n: b for n, b in module.named_buffers() if n in saved and b.is_floating_point()}
    return named


def frozen(module: nn.Module, tuning: Tuning, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return all other parameters, except peft's unchanged copies of a head or a norm layer that trains."""
    names = _names(module, tuning)
    named = {names[n]: p for n, p in module.named_parameters() if ".original_module." not in n}
    return {name: parameter for name, parameter in named.items() if name not in trained}


def transposed(module: nn.Module, tuning: Tuning) -> frozenset[str]:
    """Return the names of the weights of linear layers whose shape is inputs x outputs."""
    weights = {id(layer.weight) for layer in module.modules() if is_transposed(layer)}
    names = _names(module, tuning)
    return frozenset(names[name] for name, parameter in module.named_parameters() if id(parameter) in weights)


def by_peft(module: nn.Module) -> bool:
    """Return whether peft added the parameters that train."""
    return hasattr(module, "peft_config")


def _names(module: nn.Module, tuning: Tuning) -> dict[str, str]:
    """Return the name on the wire of every parameter."""
    if not by_peft(module):
        return {name: name for name, _ in module.named_parameters()}
    learned = module.peft_config[ADAPTER].is_prompt_learning  # type: ignore  # these are outside the model
    prefix = "base_model." if learned else "base_model.model."
    return {name: tuning.wire_name(wire_name(name, prefix)) for name, _ in module.named_parameters()}


def wire_name(name: str, prefix: str = "base_model.model.") -> str:
    """Return a parameter's name without the prefixes that peft adds."""
    name = name.removeprefix(prefix).replace(f".modules_to_save.{ADAPTER}.", ".").replace(".ln_tuning_layers.", ".")
    return name.replace(f".{ADAPTER}.", ".").replace(".base_layer.", ".").removesuffix(f".{ADAPTER}")

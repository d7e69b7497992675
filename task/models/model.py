"""From a base to a model that trains: load it, set what the tuning trains, name its tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from task.config import TaskConfig
from task.container import mapping
from task.device import kind
from task.files.contents import is_weights, listed
from task.models import naming
from task.models.base import Base
from task.models.loading import loaded
from task.models.quantization import quantize
from task.models.tuning import stacked, tuned
from task.process_memory import trim_heaps
from task.seeds import derive
from task.storage.paging import paged_out, release_pages
from task.tunings.parts.trainable import inside


@dataclass(eq=False)
class TunedModel:
    """A module and its tensors, by their names on the wire.

    Names are those of the plain transformers model; the factors of an adapter are
    `<linear layer>.lora_A.weight` (rank x inputs) and `<linear layer>.lora_B.weight` (outputs x rank); what another
    tuning adds is named after the module that it is in (`task.models.naming`).
    """

    module: nn.Module
    base: Base
    config: TaskConfig
    rank: int = 0  # rank of the adapters; 0: the model has none
    device: str = "cpu"
    trained: dict[str, torch.Tensor] = field(default_factory=dict)  # what the tuning trains
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)  # the other weights of the base
    transposed: frozenset[str] = frozenset()  # names of linear layers' weights that are inputs x outputs
    head: frozenset[str] = frozenset()  # names of the trained tensors of a classifier's head
    new_head: bool = False  # whether the base has no head for these classes
    initial_values: dict[str, torch.Tensor] = field(default_factory=dict)  # what `reset` has needed so far
    position: str = ""  # the journal position of the base weights; empty: the base itself
    changed: set[str] = field(default_factory=set)  # frozen weights written since the base was loaded
    journaled: set[str] = field(default_factory=set)  # names whose base weights a journal may have changed
    replay_state: dict[str, torch.Tensor] = field(default_factory=dict)  # other state of a replay, such as a momentum
    start: dict[str, torch.Tensor] = field(default_factory=dict)  # what the run started from, if the tuning has that
    start_position: str = ""  # the journal position after it
    untouched: bool = False  # whether the trained tensors are still as built
    notices: tuple[str, ...] = ()  # sentences for users on the base and how it was read

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write values into tensors; factors may have fewer ranks. Raises KeyError for an unknown name."""
        for name, value in tensors.items():
            if name in self.frozen:
                self.changed.add(name)
            else:
                self.untouched = False
            own = self.frozen[name] if name in self.frozen else self.trained[name]
            if own.shape == value.shape and own.is_contiguous():
                own.data.copy_(value.detach())
            else:  # of another rank, or not in order, as a journal and kernels want it
                own.data = value.detach().to(own.device, own.dtype, copy=True, memory_format=torch.contiguous_format)
            release_pages()

    def reset(self, names: Iterable[str]) -> None:
        """Restore the values that training began with: those of the base, and the seeded initial values."""
        wanted = set(names)
        self._remember(wanted)
        self.write({name: self.initial_values[name] for name in wanted})

    def base_weight(self, name: str) -> torch.Tensor:
        """Return a base weight, to be changed in place: a frozen weight, or the value that a trained one is reset to;
        float32 if the model itself has 16 bits."""
        self.journaled.add(name)
        if name in self.frozen:
            return self.frozen[name].data
        self._remember({name})
        return self.initial_values[name]

    def linear_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights (outputs x inputs) of the frozen layers that something trains in, by the layers' names.
        Those of a convolution are outputs x (inputs * height * width)."""
        layers = dict.fromkeys(name.rsplit(".", 2)[0] for name in self.trained)
        named = ((layer, f"{layer}.weight") for layer in layers)
        found = {layer: (name, self.frozen[name]) for layer, name in named if name in self.frozen}
        return {
            layer: weight.T if name in self.transposed else weight.flatten(1) for layer, (name, weight) in found.items()
        }

    def shift(self, name: str, change: torch.Tensor) -> None:
        """Add `change` to a base weight, in float64 on the CPU, so that every machine rounds alike, and only once."""
        base_weights = self.base_weight(name)
        base_weights.copy_(base_weights.cpu().double() + change.cpu())

    def shift_product(self, name: str, product: torch.Tensor) -> None:
        """Add an outputs x inputs matrix to the base weight of a layer, as `shift` does. For a convolution the matrix
        is outputs x (inputs * height * width)."""
        matrix = product.T if name in self.transposed else product
        self.shift(name, matrix.reshape(self.base_weight(name).shape))

    def _remember(self, names: set[str]) -> None:
        """Keep the initial values of `names`: copy them, or rebuild them if training has begun."""
        if names - self.initial_values.keys():
            built = self.trained if self.untouched else build(self.base, self.config, self.rank, "cpu").trained
            self.initial_values = _masters(built, self.device) | self.initial_values


def _masters(tensors: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    """Return contiguous copies in at least float32, because 16 bits lose small changes; for a processor, in a file if
    they are large."""
    if kind(device) == "cpu":
        return paged_out(tensors, torch.float32)
    return {
        name: tensor.detach().to(
            device,
            torch.promote_types(tensor.dtype, torch.float32),
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for name, tensor in tensors.items()
    }


def build(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
    """Return a new model. Weights that the base lacks are drawn from the run's seed: the same on every machine."""
    if config.model.quantized:
        trim_heaps()  # an earlier one's, such as a dry run's
    with torch.random.fork_rng(devices=[]), mapping(_bytes_of_weights(base)):
        torch.manual_seed(derive(config.seed, "init"))
        found = loaded(base, config)
        if config.model.quantized:
            quantize(found.module, found.head, config, device)
        module = tuned(found.module, found.head, config, rank)
    module.to(device)
    if config.model.dtype != "float32":
        module.register_forward_pre_hook(partial(_narrow, getattr(torch, config.model.dtype)), with_kwargs=True)
    own = naming.trained(module, config.tuning)
    frozen = naming.frozen(module, config.tuning, own)
    transposed = naming.transposed(module, config.tuning)
    head = frozenset(name for name in own if inside(name, found.head.trained))
    notices = (*found.notices, *stacked(module, config.tuning))
    return TunedModel(
        module,
        base,
        config,
        rank,
        device,
        own,
        frozen,
        transposed,
        head,
        found.head.new,
        untouched=True,
        notices=notices,
    )


def _bytes_of_weights(base: Base) -> int:
    """Return the bytes of the files that a base's weights are in."""
    return (
        0 if base.bare else sum(path.stat().st_size for name, path in listed(base.folder).items() if is_weights(name))
    )


def _narrow(dtype: torch.dtype, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return the inputs in the model's dtype. Some image models cast them, others do not. Labels that are numbers stay
    in float32, as the loss of them does."""
    inputs = {
        name: value.to(dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name != "labels"
        else value
        for name, value in named.items()
    }
    return given, inputs


def tuned_model(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
    """Return the model of this process: built once, then reused for the server, every node and every round. The caller
    must first bring it to the wanted journal position (`strategies.protocol.journal`)."""
    model = kept_model(base, config.shaping(), rank, device)
    model.base = base  # equal to the one that it was built from, with files in a place of the caller's own
    return model


@lru_cache(maxsize=1)
def kept_model(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
    """Return the model that `tuned_model` keeps."""
    kept_model.cache_clear()  # before the next is built: never two models at once
    return build(base, config, rank, device)


def pristine(model: TunedModel) -> TunedModel:
    """Return this process's model, rebuilt from the base."""
    kept_model.cache_clear()
    return tuned_model(model.base, model.config, model.rank, model.device)

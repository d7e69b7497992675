"""From a base to a model that trains: load, give it a head for the labels, mark what the tuning trains."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from task.base import Base, files
from task.config import Data, TaskConfig
from task.seeds import derive
from task.texts import pad_id
from task.tuning import TUNINGS

ADAPTER = "default"  # peft's name of the one adapter a model has


@dataclass(eq=False)
class TunedModel:
    """A module and its tensors, by their names on the wire.

    Names are those of the plain transformers model; the factors of an adapter are
    `<linear layer>.lora_A.weight` (rank x inputs) and `<linear layer>.lora_B.weight` (outputs x rank).
    """

    module: nn.Module
    base: Base
    config: TaskConfig
    rank: int = 0  # that adapters are built with; 0 where there are none
    device: str = "cpu"
    trained: dict[str, torch.Tensor] = field(default_factory=dict)  # what the tuning trains
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)  # the other weights of the base
    fresh: dict[str, torch.Tensor] = field(default_factory=dict)  # what `reset` has needed so far
    mark: str = ""  # how far a journal has changed what the model stands on; empty: it is the base
    changed: set[str] = field(default_factory=set)  # frozen weights that were written since

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put values into tensors; factors may come with fewer ranks. KeyError on a strange name."""
        for name, value in tensors.items():
            if name in self.frozen:
                self.changed.add(name)
            own = self.frozen[name] if name in self.frozen else self.trained[name]
            own.data = value.detach().to(own.device, own.dtype, copy=True)

    def reset(self, names: Iterable[str]) -> None:
        """Put back what training began with: values of the base, and the seeded fresh ones."""
        wanted = set(names)
        self._remember(wanted)
        self.write({name: self.fresh[name] for name in wanted})

    def ground(self, name: str) -> torch.Tensor:
        """What the model stands on, to be changed in place: a frozen weight, or what a trained one is reset to."""
        if name in self.frozen:
            return self.frozen[name].data
        self._remember({name})
        return self.fresh[name]

    def shift(self, name: str, change: torch.Tensor) -> None:
        """Add to what the model stands on: in float64 on the CPU, so that every machine rounds alike, and once."""
        ground = self.ground(name)
        ground.copy_(ground.cpu().double() + change.cpu())

    def save(self, folder: Path, base_name: str) -> None:
        """A peft adapter folder where the tuning is peft's (it names its base), else a transformers folder.

        Where the frozen weights are no longer those of the base, the adapter's base is written beside it.
        The ranks in the model must be those it was built with: peft writes that rank into its config.
        """
        if self.config.tuning == "lora":
            if self.mark or self.changed:
                self._save_ground(folder / "base")
                base_name = str(folder / "base")
            self.module.peft_config[ADAPTER].base_model_name_or_path = base_name  # type: ignore
        self.module.save_pretrained(folder)  # type: ignore[operator]

    def _remember(self, names: set[str]) -> None:
        """Fresh values are built again when they are first asked for, and kept."""
        if names - self.fresh.keys():
            built = build(self.base, self.config, self.rank, "cpu").trained
            self.fresh = {name: tensor.detach() for name, tensor in built.items()} | self.fresh

    def _save_ground(self, folder: Path) -> None:
        """The plain model with the frozen weights as they are, as a base: a folder of its own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.config.seed, "init"))  # a head that the base lacks is drawn
            plain, _ = _loaded(self.base, self.config)
        values = plain.state_dict()
        for name, tensor in self.frozen.items():
            values[name].copy_(tensor)
        plain.save_pretrained(folder)  # type: ignore[operator]
        for name, path in files(self.base.folder).items():
            if not (folder / name).exists() and not name.endswith(".safetensors"):
                shutil.copy(path, folder / name)


def build(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
    """A fresh model. What the base has no weights for is drawn from the run's seed: the same on every machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "init"))
        module, head = _loaded(base, config)
        module = TUNINGS[config.tuning](module, head, config.lora, rank)
    module.to(device)
    trained = _trained(module, config.tuning)
    return TunedModel(module, base, config, rank, device, trained, _frozen(module, trained))


def tuned_model(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
    """The model of this process: built once, then reused for every node and round. Whoever uses it first brings
    it to where it shall be (`strategies.exchange.journal`)."""
    return kept_model(base, _recipe(config), rank, device)


@lru_cache(maxsize=1)
def kept_model(base: Base, config: TaskConfig, rank: int, device: str) -> TunedModel:
    """What `tuned_model` keeps."""
    kept_model.cache_clear()  # before the next is built: never two models at once
    return build(base, config, rank, device)


def pristine(model: TunedModel) -> TunedModel:
    """This process's model, built again from the base."""
    kept_model.cache_clear()
    return tuned_model(model.base, model.config, model.rank, model.device)


def _recipe(config: TaskConfig) -> TaskConfig:
    """The settings that shape a model; the others are set to their defaults, so that they do not build another."""
    return TaskConfig(
        task=config.task,
        model=config.model,
        data=Data(labels=config.data.labels),
        lora=config.lora,
        tuning=config.tuning,
        seed=config.seed,
    )


def wire_name(name: str) -> str:
    """A parameter's name without what peft wraps round it."""
    name = name.removeprefix("base_model.model.").replace(f".modules_to_save.{ADAPTER}.", ".")
    return name.replace(f".{ADAPTER}.", ".").replace(".base_layer.", ".")


def _trained(module: nn.Module, tuning: str) -> dict[str, torch.Tensor]:
    """Trainable parameters; under full tuning the running statistics of normalisation layers too."""
    named: dict[str, torch.Tensor] = {wire_name(n): p for n, p in module.named_parameters() if p.requires_grad}
    if tuning == "full":
        saved = set(module.state_dict().keys())
        named |= {n: b for n, b in module.named_buffers() if n in saved and b.is_floating_point()}
    return named


def _frozen(module: nn.Module, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All other parameters, but for peft's untouched copies of a head that trains."""
    named = {wire_name(n): p for n, p in module.named_parameters() if ".original_module." not in n}
    return {name: parameter for name, parameter in named.items() if name not in trained}


def _loaded(base: Base, config: TaskConfig) -> tuple[nn.Module, list[str]]:
    """The plain transformers model and the names of its head's modules."""
    import transformers

    import task.perceptron  # noqa: F401  registers a kind of model that transformers lacks

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kinds: dict[str, Any] = {
        "image-classification": transformers.AutoModelForImageClassification,
        "text-classification": transformers.AutoModelForSequenceClassification,
    }
    names = config.data.labels
    module, loading = kinds[config.task.kind].from_pretrained(
        base.folder,
        dtype=getattr(torch, config.model.dtype),
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        ignore_mismatched_sizes=True,  # a head for other labels is replaced by a fresh one
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=config.model.trust_remote_code,
        output_loading_info=True,
    )
    if config.task.kind == "text-classification" and module.config.pad_token_id is None:
        module.config.pad_token_id = pad_id(base.folder)  # heads of causal models find a row's end by it
    fresh = [*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])]
    return module, _head(module, fresh)


def _head(module: nn.Module, fresh: list[str]) -> list[str]:
    """Modules outside the pretrained body, and those inside it that the base has no weights for."""
    body = getattr(module, "base_model_prefix", "")
    outside = [n for n, child in module.named_children() if n != body and any(True for _ in child.parameters())]
    inside = {name.rsplit(".", 1)[0] for name in fresh if name.startswith(body + ".")}
    return outside + sorted(inside)

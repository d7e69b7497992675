"""Tuned models as folders, for peft, for transformers, or for `restored`.

A folder has all that the base had beside its weights: tokenizer, processor, chat template, settings of generation. So
who loads the model reads rows as they were read in training.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from task.config import EMBEDDED_MODEL, TaskConfig
from task.files.bounded_json import JSONError, read_json
from task.files.contents import CONFIG, INDEX, is_weights, listed
from task.kinds import registry as kinds
from task.models.base import Base, BaseError, named_folder
from task.models.loading import loaded
from task.models.model import TunedModel
from task.models.naming import ADAPTER, by_peft, trained
from task.models.reading import own_settings
from task.models.tuning import stacked, tuned
from task.modes import as_the_folder
from task.schema import ConfigError, build, flatten, read, schema
from task.seeds import derive
from task.tunings.base import OWN, TRANSFORMERS, Tuning, TuningError

SETTINGS, TENSORS, BASE = "tuning.json", "tuning.safetensors", "base"
ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Settings that transformers writes by itself, and that change nothing of what a model computes.
IDLE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def save(model: TunedModel, folder: Path, base_name: str) -> None:
    """Write a folder that loads: peft's where peft has added what trains (it names its base), the plain model as
    transformers has it where the tuning changes or folds into that, else one for `restored`.

    Where the frozen weights are no longer those of the base, the base is written beside it. The ranks in the model must
    be those it was built with: peft writes that rank into its config.
    """
    if by_peft(model.module):
        _save_peft(model, folder, _base_name(model, folder, base_name))
    elif saved_as(model.config) == OWN:
        _save_own(model, folder, _base_name(model, folder, base_name))
    elif model.config.tuning.folds:
        values = model.frozen | model.config.tuning.folded(model.module, model.trained)
        _plain(model, values).save_pretrained(folder)  # type: ignore[operator]
    else:
        model.module.save_pretrained(folder)  # type: ignore[operator]
    _copy_rest(model.base, folder)


def saved_as(config: TaskConfig) -> str:
    """Return the format of a tuned model's folder: TRANSFORMERS, PEFT, or OWN, which only `restored` can load."""
    return config.tuning.saved_as(kinds.of(config))


def save_base(model: TunedModel, folder: Path) -> str:
    """Return the name under which an adapter finds its base: its own, or `folder`, to which it is written where its own
    name does not do. That is the embedded base; a classifier whose settings are not those of the run, as peft and
    transformers take the labels from the base; and a base that was not read as it lies in its files.
    """
    base, config = model.base, model.config
    if saved_as(config) == TRANSFORMERS:
        return base.name
    named = base.name != EMBEDDED_MODEL and not (Path(base.name) / ADAPTER_CONFIG).exists()  # nor an adapter of another
    if named and (saved_as(config) == OWN or _is_as_saved(model)):
        return base.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "init"))  # a head that the base lacks is drawn, as in training
        loaded(base, config).module.save_pretrained(folder)  # type: ignore[operator]
    _copy_rest(base, folder)
    return str(folder)


def _is_as_saved(model: TunedModel) -> bool:
    """Whether whoever loads the base by its name gets what was trained on."""
    said = set(model.notices) - set(stacked(model.module, model.config.tuning))
    return not said and _settings_of(model.module.config) == _settings_of(own_settings(model.base, model.config))


def _settings_of(config: Any) -> dict[str, Any]:
    """What a model's settings say of what it computes, labels among them."""
    said = config.to_dict() | {"id2label": config.id2label, "num_labels": config.num_labels}
    return {key: value for key, value in said.items() if key not in IDLE}


def restored(folder: Path | str, base: str = "", trust_remote_code: bool = False) -> nn.Module:
    """The model of a folder with a `tuning.json`, ready to use: the base, and what was trained on it.

    `base` is a folder or a hub id; empty: the one that the folder names, as far as that leads nowhere but to the hub,
    or has in it or beside it. Code that comes with the base runs only where `trust_remote_code`, whatever the folder
    says. Raises BaseError where the base cannot be had, ConfigError for settings that cannot be read, TuningError where
    the tensors do not fit the base.
    """
    folder = Path(folder)
    about = _about(folder / SETTINGS)
    values, problems = read(about["settings"], schema(TaskConfig))
    if problems:
        raise ConfigError([f"{folder / SETTINGS}: {problem}" for problem in problems])
    config = build(TaskConfig, values)
    name = base or _named(folder, about["base"])
    config = replace(config, model=replace(config.model, name=name, trust_remote_code=trust_remote_code))
    place = named_folder(config.model)
    with torch.random.fork_rng(devices=[]):
        found = loaded(Base(name, place, ""), config)
        module = tuned(found.module, found.head, config, 0)
    own, tensors = trained(module, config.tuning), load_file(folder / TENSORS)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise TuningError(f"{folder / TENSORS} was not trained on {name}: names or shapes differ")
    for key, tensor in tensors.items():
        own[key].data.copy_(tensor)
    return module.eval()


def _about(path: Path) -> dict[str, Any]:
    """The name of the base and the settings. Raises ConfigError."""
    try:
        found = read_json(path)
    except JSONError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    kinds = {"base": str, "settings": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        raise ConfigError([f"{path} does not say what was trained on which base"])
    return found


def _named(folder: Path, name: str) -> str:
    """The base that a folder names or has in it. Raises BaseError for a path to anywhere else: others may have written
    the folder."""
    own_base = folder / BASE
    if own_base.is_dir():
        return str(own_base)
    place = Path(name).expanduser()
    if not place.is_dir() or place.resolve().is_relative_to(folder.resolve().parent):
        return name
    raise BaseError(
        f"{folder / SETTINGS} names the base '{name}', outside {folder.parent}: say base = '{name}' yourself"
    )


def _base_name(model: TunedModel, folder: Path, base_name: str) -> str:
    """Where the base is: it is written beside where the frozen weights are no longer those of the base."""
    if not (model.position or model.changed):
        return base_name
    place = folder / BASE
    _plain(model, model.frozen).save_pretrained(place)  # type: ignore[operator]
    _copy_rest(model.base, place)
    return str(place)


def _copy_rest(base: Base, folder: Path) -> None:
    """Copy what the base has beside weights, as far as the folder lacks it. Where peft reads a folder, a config.json
    would say that all weights are in it."""
    adapted = (folder / ADAPTER_CONFIG).exists()
    for name, path in listed(base.folder).items():
        theirs = is_weights(name) or name == INDEX or (adapted and name == CONFIG)
        if not theirs and not (folder / name).exists():
            shutil.copyfile(path, folder / name)
    as_the_folder(folder)


def _save_peft(model: TunedModel, folder: Path, base_name: str) -> None:
    model.module.peft_config[ADAPTER].base_model_name_or_path = base_name  # type: ignore
    model.module.save_pretrained(folder)  # type: ignore[operator]
    (folder / "README.md").unlink(missing_ok=True)  # a blank form with this machine's paths
    _rename(folder / ADAPTER_TENSORS, model.config.tuning)
    if kind := kinds.of(model.config).peft_task_type:
        path = folder / ADAPTER_CONFIG
        said = json.loads(path.read_text(encoding="utf-8")) | {"task_type": kind, "auto_mapping": None}
        path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rename(path: Path, tuning: Tuning) -> None:
    """Give the tensors of an adapter the names that the tuning wants them saved under."""
    tensors = load_file(path)
    named = {tuning.saved_name(name): tensor for name, tensor in tensors.items()}
    if named.keys() != tensors.keys():
        save_file(named, path, {"format": "pt"})


def _save_own(model: TunedModel, folder: Path, base_name: str) -> None:
    """Like a peft folder: what was trained, the settings that shape it, and the name of the base."""
    folder.mkdir(parents=True, exist_ok=True)
    model.module.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    about = {"base": base_name, "settings": flatten(model.config.shaping(), changed_only=True)}
    (folder / SETTINGS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.trained.items()}, folder / TENSORS)


def _plain(model: TunedModel, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model as transformers has it, with these tensors in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(model.config.seed, "init"))  # a head that the base lacks is drawn
        plain = loaded(model.base, model.config).module
    values = plain.state_dict()
    for name, tensor in tensors.items():
        values[name].copy_(tensor)
    return plain

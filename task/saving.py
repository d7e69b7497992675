"""Tuned models as folders, for peft, for transformers, or for `restored`."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from task.base import Base, BaseError, files, named_folder
from task.bounded_json import JSONError, read_json
from task.config import TaskConfig
from task.loading import loaded
from task.naming import ADAPTER, by_peft, trained
from task.scale_shift import folded
from task.schema import ConfigError, build, flatten, read, schema
from task.seeds import derive
from task.tuning import TuningError, tuned

if TYPE_CHECKING:
    from task.model import TunedModel

OWN = ("adapter", "prompt")  # tunings that neither transformers nor peft can load
SETTINGS, TENSORS, GROUND = "tuning.json", "tuning.safetensors", "base"


def save(model: "TunedModel", folder: Path, base_name: str) -> None:
    """Write what `TunedModel.save` says."""
    if by_peft(model.module):
        _save_peft(model, folder, _ground(model, folder, base_name))
    elif model.config.tuning in OWN:
        _save_own(model, folder, _ground(model, folder, base_name))
    elif model.config.tuning == "ssf":
        head = {name: tensor for name, tensor in model.trained.items() if ".ssf_" not in name}
        _plain(model, model.frozen | head | folded(model.module)).save_pretrained(folder)  # type: ignore[operator]
    else:
        model.module.save_pretrained(folder)  # type: ignore[operator]


def restored(folder: Path, base: str = "", trust_remote_code: bool = False) -> nn.Module:
    """The model of a folder with a `tuning.json`, ready to use: the base, and what was trained on it.

    `base` is a folder or a hub id; empty: the one that the folder names, as far as that leads nowhere but to the hub,
    or has in it or beside it. Code that comes with the base runs only where `trust_remote_code`, whatever the folder
    says. Raises BaseError where the base cannot be had, ConfigError for settings that cannot be read, TuningError where
    the tensors do not fit the base.
    """
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
    beside = folder / GROUND
    if beside.is_dir():
        return str(beside)
    place = Path(name).expanduser()
    if not place.is_dir() or place.resolve().is_relative_to(folder.resolve().parent):
        return name
    raise BaseError(
        f"{folder / SETTINGS} names the base '{name}', outside {folder.parent}: say base = '{name}' yourself"
    )


def _ground(model: "TunedModel", folder: Path, base_name: str) -> str:
    """Where the base is: it is written beside where the frozen weights are no longer those of the base."""
    if not (model.mark or model.changed):
        return base_name
    place = folder / GROUND
    _plain(model, model.frozen).save_pretrained(place)  # type: ignore[operator]
    for name, path in files(model.base.folder).items():
        if not (place / name).exists() and not name.endswith(".safetensors"):
            shutil.copy(path, place / name)
    return str(place)


def _save_peft(model: "TunedModel", folder: Path, base_name: str) -> None:
    model.module.peft_config[ADAPTER].base_model_name_or_path = base_name  # type: ignore
    model.module.save_pretrained(folder)  # type: ignore[operator]


def _save_own(model: "TunedModel", folder: Path, base_name: str) -> None:
    """Like a peft folder: what was trained, the settings that shape it, and the name of the base."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"base": base_name, "settings": flatten(model.config.shaping(), changed_only=True)}
    (folder / SETTINGS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.trained.items()}, folder / TENSORS)


def _plain(model: "TunedModel", tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model as transformers has it, with these tensors in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(model.config.seed, "init"))  # a head that the base lacks is drawn
        plain = loaded(model.base, model.config).module
    values = plain.state_dict()
    for name, tensor in tensors.items():
        values[name].copy_(tensor)
    return plain

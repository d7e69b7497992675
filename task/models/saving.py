"""Tuned models as folders, for peft, for transformers, or for `restored`.

A folder has everything the base had besides its weights: tokenizer, processor, chat template, generation settings. A
loaded model therefore reads rows as in training.
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
# Settings that transformers writes by itself. They do not change what a model computes.
IDLE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def save(model: TunedModel, folder: Path, base_name: str) -> None:
    """Write a folder that loads.

    The format is peft's if peft added the parameters that train (it names its base), the plain transformers model if
    the tuning changes that or folds into it, else the one that `restored` loads. If the frozen weights differ from the
    base, the base is written into the folder too. The model must have the ranks it was built with: peft writes that
    rank into its config.
    """
    if by_peft(model.module):
        _save_peft(model, folder, _base_name(model, folder, base_name))
    elif saved_as(model.config) == OWN:
        _save_own(model, folder, _base_name(model, folder, base_name))
    elif model.config.tuning.folds:
        values = model.frozen | model.config.tuning.folded(model.module, model.trained)
        _plain(model, values).save_pretrained(folder)  # type: ignore[operator]
    elif model.config.model.quantized:
        _plain(model, model.trained).save_pretrained(folder)  # type: ignore[operator]
    else:
        model.module.save_pretrained(folder)  # type: ignore[operator]
    _copy_rest(model.base, folder)


def saved_as(config: TaskConfig) -> str:
    """Return the format of a tuned model's folder: TRANSFORMERS, PEFT, or OWN, which only `restored` can load."""
    return config.tuning.saved_as(kinds.of(config))


def save_base(model: TunedModel, folder: Path) -> str:
    """Return the name under which an adapter finds its base: the base's own name, or `folder`.

    The base is written to `folder` if its own name is not enough: for the embedded base; for a classifier whose
    settings differ from the run's, because peft and transformers take the labels from the base; and for a base that was
    not read exactly as stored.
    """
    base, config = model.base, model.config
    if saved_as(config) == TRANSFORMERS:
        return base.name
    named = base.name != EMBEDDED_MODEL and not (Path(base.name) / ADAPTER_CONFIG).exists()  # nor an adapter of another
    if named and (saved_as(config) == OWN or _is_as_saved(model)):
        return base.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "init"))  # a head that the base lacks is drawn, as in training
        whole = replace(base, bare=False)  # weights that the run did without must now be read
        loaded(whole, config).module.save_pretrained(folder)  # type: ignore[operator]
    _copy_rest(base, folder)
    return str(folder)


def _is_as_saved(model: TunedModel) -> bool:
    """Return whether loading the base by its name gives the weights that the run started from."""
    said = set(model.notices) - set(stacked(model.module, model.config.tuning))
    return not said and _settings_of(model.module.config) == _settings_of(own_settings(model.base, model.config))


def _settings_of(config: Any) -> dict[str, Any]:
    """Return the model settings that affect what it computes, labels included."""
    said = config.to_dict() | {"id2label": config.id2label, "num_labels": config.num_labels}
    return {key: value for key, value in said.items() if key not in IDLE}


def restored(folder: Path | str, base: str = "", trust_remote_code: bool = False) -> nn.Module:
    """Return the model of a folder with a `tuning.json`, ready to use: the base and the trained tensors.

    `base` is a folder or a hub id; empty: the base that the folder names, if it is on the hub, in the folder, or next
    to it. Code that comes with the base runs only if `trust_remote_code` is set, whatever the folder says. Raises
    BaseError if the base is not available, ConfigError if the settings cannot be read, TuningError if the tensors do
    not fit the base.
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
    """Return the name of the base and the settings. Raises ConfigError."""
    try:
        found = read_json(path)
    except JSONError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    kinds = {"base": str, "settings": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        raise ConfigError([f"{path} does not say what was trained on which base"])
    return found


def _named(folder: Path, name: str) -> str:
    """Return the base that a folder names or contains. Raises BaseError for a path to any other place: the folder may
    come from somebody else."""
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
    """Return the name of the base. If the frozen weights differ from the base, by more than the start of a run that
    the tuning accounts for, write them into `folder` first."""
    if model.position in ("", model.start_position) and not model.changed:
        return base_name
    place = folder / BASE
    _plain(model, model.frozen).save_pretrained(place)  # type: ignore[operator]
    _copy_rest(model.base, place)
    return str(place)


def _copy_rest(base: Base, folder: Path) -> None:
    """Copy the base's files other than weights, unless the folder has them. A folder for peft gets no config.json,
    which would say that all weights are in it."""
    adapted = (folder / ADAPTER_CONFIG).exists()
    for name, path in listed(base.folder).items():
        theirs = is_weights(name) or name == INDEX or (adapted and name == CONFIG)
        if not theirs and not (folder / name).exists():
            shutil.copyfile(path, folder / name)
    as_the_folder(folder)


def _save_peft(model: TunedModel, folder: Path, base_name: str) -> None:
    model.module.peft_config[ADAPTER].base_model_name_or_path = base_name  # type: ignore
    model.module.save_pretrained(folder)  # type: ignore[operator]
    (folder / "README.md").unlink(missing_ok=True)  # an empty template with this machine's paths
    start = model.start if model.position == model.start_position else {}
    settings = _convert(folder / ADAPTER_TENSORS, model.config.tuning, start)
    if kind := kinds.of(model.config).peft_task_type:
        settings |= {"task_type": kind, "auto_mapping": None}
    if settings:
        path = folder / ADAPTER_CONFIG
        said = json.loads(path.read_text(encoding="utf-8")) | settings
        path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _convert(path: Path, tuning: Tuning, start: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Replace the tensors of an adapter by those that the tuning saves; return settings to replace too."""
    tensors = load_file(path)
    values, settings = tuning.saved(tensors, start)
    if values.keys() != tensors.keys() or any(values[name] is not tensors[name] for name in values):
        save_file({name: tensor.contiguous() for name, tensor in values.items()}, path, {"format": "pt"})
    return settings


def _save_own(model: TunedModel, folder: Path, base_name: str) -> None:
    """Write the trained tensors, the settings that shape them, and the name of the base, as a peft folder does."""
    folder.mkdir(parents=True, exist_ok=True)
    model.module.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    about = {"base": base_name, "settings": flatten(model.config.shaping(), changed_only=True)}
    (folder / SETTINGS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.trained.items()}, folder / TENSORS)


def _plain(model: TunedModel, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the plain transformers model with these tensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(model.config.seed, "init"))  # a head that the base lacks is drawn
        plain = loaded(model.base, model.config).module
    values = plain.state_dict()
    for name, tensor in tensors.items():
        values[name].copy_(tensor)
    return plain

"""Three lines of Python that load a tuned model and use it, as people would write them."""

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from task.config import TaskConfig
from task.files.contents import CONFIG, settings
from task.kinds import registry as kinds
from task.models.base import Base
from task.models.saving import saved_as
from task.tunings.base import OWN, TRANSFORMERS

RGB = 3


def usage(config: TaskConfig, base: Base, folder: Path | str, base_folder: str = "") -> list[str]:
    """Return the lines for a model that `task.models.saving` wrote to `folder`. They run as they are, on an empty
    input, which users replace by their own.

    `base_folder` is where the base is, if `restored` needs it as an argument: it follows no path out of `folder`.
    """
    kind, channels = kinds.of(config), settings(base.folder / CONFIG).get("num_channels", RGB)
    if kind.images and channels != RGB:
        return _by_processor(
            config, str(folder), base_folder
        )  # a pipeline of transformers makes every image one of three channels
    if not kind.piped:
        return _by_tokenizer(config, str(folder), base_folder)
    imports, loaded = _loaded(config, str(folder), base_folder)
    made = f'model = pipeline("{kind.pipeline}", {loaded})'
    if kind.images:
        return [f"from PIL import Image; {imports}", made, 'print(model(Image.new("RGB", (64, 64))))']
    return [imports, made, 'print(model("Your text"))']


def _loaded(config: TaskConfig, folder: str, base_folder: str) -> tuple[str, str]:
    """Return the imports and the arguments of a pipeline."""
    if saved_as(config) != OWN and config.tuning.transformers_loads:
        return "from transformers import pipeline", f"model={folder!r}"
    reader, what = (
        ("AutoImageProcessor", "image_processor") if kinds.of(config).images else ("AutoTokenizer", "tokenizer")
    )
    source, loader = _loader(config)
    imports = f"from {source} import {loader.partition('.')[0]}"
    arguments = f"model={_call(config, loader, folder, base_folder)}, {what}={reader}.from_pretrained({folder!r})"
    return f"{imports}; from transformers import {reader}, pipeline", arguments


def _by_processor(config: TaskConfig, folder: str, base_folder: str) -> list[str]:
    source, loader = _loader(config)
    name = loader.partition(".")[0]
    return [
        f"from PIL import Image; from transformers import AutoImageProcessor; from {source} import {name}",
        f"model, processor = {_call(config, loader, folder, base_folder)}, "
        f"AutoImageProcessor.from_pretrained({folder!r})",
        'print(model(**processor(Image.new("L", (64, 64)), return_tensors="pt")).logits.softmax(-1))',
    ]


def _by_tokenizer(config: TaskConfig, folder: str, base_folder: str) -> list[str]:
    source, loader = _loader(config)
    return [
        f"from transformers import AutoTokenizer; from {source} import {loader.partition('.')[0]}",
        f"model, tokenizer = {_call(config, loader, folder, base_folder)}, AutoTokenizer.from_pretrained({folder!r})",
        'found = model.generate(**tokenizer("Your text", return_tensors="pt"), max_new_tokens=20)',
        "print(tokenizer.decode(found[0], skip_special_tokens=True))",
    ]


def _call(config: TaskConfig, loader: str, folder: str, base_folder: str) -> str:
    base_argument = f", {base_folder!r}" if base_folder and saved_as(config) == OWN else ""
    return f"{loader}({folder!r}{base_argument})"


def _loader(config: TaskConfig) -> tuple[str, str]:
    """Return the name of the loader and the module to import it from."""
    if saved_as(config) == OWN:
        return "task.models.saving", "restored"
    kind = kinds.of(config)
    if saved_as(config) == TRANSFORMERS:
        return "transformers", f"{kind.auto_class}.from_pretrained"
    return "peft", f"{kind.peft_auto_class}.from_pretrained"


def ready(config: TaskConfig, base: Base, folder: Path) -> nn.Module:
    """Return the model that these lines load, in evaluation mode. `folder` is where `task.models.saving` wrote it.

    Raises BaseError if its base is not available.
    """
    source, loader = _loader(config)
    name, _, method = loader.partition(".")
    load: Any = getattr(import_module(source), name)
    if saved_as(config) == OWN:
        model: nn.Module = load(folder, base.name if Path(base.name).is_dir() else "", config.model.trust_remote_code)
    else:
        model = getattr(load, method)(folder, trust_remote_code=config.model.trust_remote_code)
    return model.eval()

"""A peft adapter as a base: it is merged once into the model it was trained on, and the result is the base.

Its settings name the model it was trained on: a folder, a folder of that name next to it, or a hub id. Both are read as
any base: only safetensors, and none of their code runs.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

from task.config import Model
from task.files.bounded_json import JSONError, read_json
from task.files.contents import ADAPTED, ADAPTER, CONFIG, INDEX, BaseError, adapter, check, is_weights, listed, weights
from task.files.library_copy import shown, without_names
from task.files.size_limit import no_larger_than
from task.kinds import registry as kinds
from task.kinds.base import Kind
from task.models.base import fingerprint, named_folder
from task.models.heads import by_labels, head_modules
from task.models.missing_weights import Report, counted
from task.storage.store import Store, recipe_hash

LOG = logging.getLogger("flwr")
MERGING = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "LN_TUNING", "OFT", "BOFT", "VERA")
PREFIX = "base_model.model."  # of all names in an adapter's file
CURE = (
    "merge it where its base is (merge_and_unload(), save_pretrained(), its tokenizer or processor too) and name that"
)


def merged(folder: Path, store: Store) -> Path:
    """Return the folder, in the store, of the base merged from the adapter in `folder` and its own base. Raises
    BaseError if that base is not available or the two do not fit."""
    files, about = adapter(folder), _about(folder / ADAPTER)
    kind = about.get("peft_type")
    if kind not in MERGING:
        raise BaseError.at(
            folder / ADAPTER, "an adapter of this kind cannot be merged into its base", f": {kind!r:.40}"
        )
    base = _base(folder, about)
    own = {**{n: p for n, p in listed(folder).items() if n not in (CONFIG, INDEX)}, **files}
    key = recipe_hash([fingerprint(base, store), {name: _hash(path) for name, path in sorted(own.items())}])
    with store.made("merged", key, f"the adapter {folder} and its base {base}") as draft:
        if draft is not None:
            _merge(folder, about, base, draft)
    LOG.info("the adapter in %s is merged into its base %s", folder, base)
    return store.path("merged", key)


def _about(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except JSONError as error:
        raise BaseError.at(path, str(error)) from error
    if not isinstance(found, dict) or not isinstance(found.get("base_model_name_or_path"), str):
        raise BaseError.at(path, f"the adapter does not say what it was trained on (base_model_name_or_path); {CURE}")
    return found


def _base(folder: Path, about: Mapping[str, Any]) -> Path:
    """Return the folder of the model that an adapter was trained on: at its original place, or next to the adapter."""
    name = about["base_model_name_or_path"]
    nearby = [folder / name, *(place / Path(name).name for place in (folder, folder.parent))]
    place = next((str(p) for p in [Path(name).expanduser(), *nearby] if p.is_dir() and p != folder), name)
    try:
        found = named_folder(Model(name=place))
    except BaseError as error:
        problem = f"the adapter was trained on {name!r:.200}, which is not available here"
        raise BaseError(
            f"{folder / ADAPTER}: {problem} ({error}); put it there or next to the adapter, or {CURE}",
            f"the adapter's base is not available; {CURE}",
        ) from error
    return found


def _merge(folder: Path, about: Mapping[str, Any], base: Path, draft: Path) -> None:
    module, drawn = _joined(folder, about, base)
    kept = {name: tensor for name, tensor in module.state_dict().items() if name not in drawn}
    module.save_pretrained(draft, state_dict=kept)
    for source in (folder, base):  # a tokenizer saved with the adapter takes precedence
        for name, path in listed(source).items():
            if name not in (CONFIG, INDEX) and not is_weights(name) and not (draft / name).exists():
                shutil.copyfile(path, draft / name)


def _joined(folder: Path, about: Mapping[str, Any], base: Path) -> tuple[Any, set[str]]:
    """Return the model with the adapter, and the names of the weights that neither has, such as a head's."""
    import peft
    import transformers

    stored, kind = _stored(folder / ADAPTED), kinds.by_peft(str(about.get("task_type")))
    shapes = weights(check(base))
    try:
        with shown(base) as place, no_larger_than(shapes):
            config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
            auto = getattr(transformers, kind.auto_class)
            options = {
                "trust_remote_code": False,
                "local_files_only": True,
                "use_safetensors": True,
                "dtype": "auto",
                "output_loading_info": True,
            }
            module, loading = auto.from_pretrained(
                place,
                ignore_mismatched_sizes=True,
                **options,
                **_classes(kind, auto, config, stored),
            )
        with TemporaryDirectory(prefix="thistledown-adapter-") as name:
            settings = without_names(dict(about), folder / ADAPTER) | {
                "inference_mode": True,
                "init_lora_weights": True,
            }
            (Path(name) / ADAPTER).write_text(json.dumps(settings), encoding="utf-8")
            (Path(name) / ADAPTED).symlink_to((folder / ADAPTED).resolve())
            adapted = peft.PeftModel(module, peft.PeftConfig.from_pretrained(name))
            result = adapted.load_adapter(name, "default")
        _settle(adapted)
        plain = adapted.merge_and_unload()
    except BaseError:
        raise
    except Exception as error:
        problem = f"the adapter cannot be merged into its base ({type(error).__name__})"
        raise BaseError(f"{folder}: {problem}: {error!s:.500}; {CURE}", f"{problem}; {CURE}") from error
    if strange := list(result.unexpected_keys):
        raise BaseError.at(folder / ADAPTED, "its weights do not fit its base", f": {counted(strange)}; {CURE}")
    report = Report.of(loading)
    head = head_modules(plain, by_labels(plain), report.drawn) if kind.drawn_head else []
    drawn = {name for name in report.drawn if name not in stored}
    if lacking := [name for name in report.lacking(head) if name in drawn]:
        raise BaseError.at(base, "the adapter's base lacks weights", f": {counted(lacking)}")
    return plain, drawn


def _settle(adapted: Any) -> None:
    """Replace the base's heads by the adapter's own: the merge of IA3 and norm layers mistakes them for layers with a
    weight, or keeps both."""
    from peft.utils import ModulesToSaveWrapper

    for name, child in list(adapted.base_model.model.named_modules()):
        if isinstance(child, ModulesToSaveWrapper):
            adapted.base_model.model.set_submodule(name, child.modules_to_save["default"])


def _stored(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in an adapter's file, by the names of the plain model."""
    with safe_open(path, framework="np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return {name.removeprefix(PREFIX).replace(".modules_to_save.", "."): shape for name, shape in shapes.items()}


def _classes(kind: Kind, auto: Any, config: Any, stored: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the number of classes of the adapter's head, if it has one, as model settings."""
    import torch

    if not kind.drawn_head:
        return {}
    with torch.device("meta"):
        module = auto.from_config(config)
    counts = {stored[name][dimension] for name, dimension in by_labels(module).items() if name in stored}
    return {"num_labels": counts.pop()} if len(counts) == 1 and counts != {config.num_labels} else {}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

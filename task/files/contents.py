"""The files a base may contain: of these names, none too large, none linked to a place outside its folder.

A base may come from an untrusted server or hub. All code that reads one uses `listed` and `weights`; libraries read
what `task.files.library_copy` makes of it.
"""

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from task.files.bounded_json import JSONError, read_json
from task.files.pointer import CURE, is_pointer

MB = 2**20
CONFIG, INDEX, TOKENIZER = "config.json", "model.safetensors.index.json", "tokenizer.json"
WHOLE, SHARD = "model.safetensors", re.compile(r"model-\d{5,6}-of-\d{5,6}\.safetensors")
# Settings, which libraries interpret key by key, and the largest size of each in bytes.
SETTINGS = {
    CONFIG: 8 * MB,
    "generation_config.json": MB,
    "tokenizer_config.json": 16 * MB,
    "special_tokens_map.json": 4 * MB,
    "chat_template.json": MB,
    "preprocessor_config.json": MB,
    "processor_config.json": MB,
}
# Content, which is read as data.
CONTENT = {
    INDEX: 64 * MB,
    TOKENIZER: 128 * MB,
    "added_tokens.json": 8 * MB,
    "vocab.json": 64 * MB,
    "vocab.txt": 64 * MB,
    "merges.txt": 64 * MB,
    "spiece.model": 64 * MB,
    "spm.model": 64 * MB,
    "tokenizer.model": 64 * MB,
    "sentencepiece.model": 64 * MB,
    "sentencepiece.bpe.model": 64 * MB,
    "chat_template.jinja": MB,
}
BARE = [*SETTINGS, *CONTENT]  # the same without weights, as patterns for the hub
WANTED = [*BARE, WHOLE, "model-*-of-*.safetensors"]  # with weights
ADAPTER, ADAPTED = "adapter_config.json", "adapter_model.safetensors"  # peft's files; the adapter's base is elsewhere
UNUSABLE = "a base that cannot be used; only this node's own log says why"
LIMITS = SETTINGS | CONTENT
STACKED = re.compile(r"layer|depth|block|stage|label")  # in keys of config.json that count repeated parts
MOST = 2**16  # the largest such count


class BaseError(ValueError):
    """A base that cannot be found or used. The message names paths and is for this machine only; `public` is for
    others: no path, and nothing that only this disk has."""

    def __init__(self, message: str, public: str = UNUSABLE) -> None:
        super().__init__(message)
        self.public = public

    @classmethod
    def at(cls, path: Path, problem: str, seen: str = "") -> "BaseError":
        """Return the error for a file of a base; `seen` ends the message and is not public."""
        return cls(f"{path}: {problem}{seen}", f"the base's {path.name}: {problem}")


def may_be_named(name: str) -> bool:
    """Return whether a base may have a file of this name."""
    return name in LIMITS or is_weights(name)


def is_weights(name: str) -> bool:
    """Return whether a file of this name has weights, which have no size limit of their own."""
    return name == WHOLE or SHARD.fullmatch(name) is not None


def check_size(name: str, size: int) -> None:
    """Raise BaseError for a file above the size limit of its name."""
    if size > LIMITS.get(name, size):
        raise BaseError.at(Path(name), f"it may have {LIMITS[name]} bytes", f", and has {size}")


def listed(folder: Path) -> dict[str, Path]:
    """Return the files of a base, by name; other files in the folder are ignored.

    Raises BaseError for a file that links out of the folder, is not a regular file, or is too large.
    """
    try:
        inside = sorted(path for path in folder.iterdir() if may_be_named(path.name))
    except OSError as error:
        raise BaseError(f"{folder} cannot be read: {error}") from error
    for path in inside:
        _check_regular(path, folder)
    return {path.name: path for path in inside}


def check(folder: Path, bare: bool = False) -> dict[str, Path]:
    """Return the files of a base, after a check that its settings can be read and all its weights are safetensors. A
    base that is `bare` needs no weights.

    Raises BaseError.
    """
    files = listed(folder)
    if CONFIG not in files:
        raise BaseError(f"{folder} is not a model: it has no {CONFIG}{_elsewhere(folder)}", f"the base has no {CONFIG}")
    if not bare and not any(map(is_weights, files)):
        problem = "has no safetensors; other weight formats can run code and are not read"
        raise BaseError(f"{folder} {problem}{_elsewhere(folder)}", f"the base {problem}")
    found = {name: settings(files[name]) for name in SETTINGS.keys() & files.keys()}
    if found[CONFIG].get("quantization_config"):
        problem = "its weights are quantised, and cannot be trained; name the model that they were made from"
        raise BaseError.at(files[CONFIG], problem)
    return files


def _elsewhere(folder: Path) -> str:
    """Return what to do about a folder that is not a base, if its files show it."""
    if (folder / "tuning.json").exists():
        return ". What was tuned with adapters or visual prompts is no base: name the base that its tuning.json names"
    if (folder / ADAPTER).exists():
        return ". It is an adapter of peft: name the folder that has it and the base that it was trained on"
    if inside := sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}")):
        return f". There is one in {', '.join(inside[:3])}: name that folder"
    if any(folder.glob("*.bin")):
        return ". Load it once where you trust it, and save it again with save_pretrained()"
    return ""


def settings(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file. Raises BaseError if it is no table, too deep, or has counts above MOST."""
    found = _json(path)
    if not isinstance(found, dict):
        raise BaseError.at(path, "it has no table of settings")
    if path.name == CONFIG:
        _check_counts(found, path)
    return found


def weights(files: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the weights of a base. Raises BaseError for an index that names other files
    than the base's own safetensors, for damaged or incomplete safetensors, and for two sets of them."""
    if WHOLE in files and INDEX in files:  # libraries silently take the first, which may be the older
        problem = f"has its weights twice, in {WHOLE} and in what {INDEX} names; remove one of them"
        raise BaseError(f"{files[WHOLE].parent} {problem}", f"the base {problem}")
    if WHOLE in files:
        return _shapes(files[WHOLE])
    if INDEX not in files:
        raise BaseError(f"the base has shards of weights and no {INDEX}", f"the base lacks its {INDEX}")
    places = _weight_map(files[INDEX])
    found: dict[str, tuple[int, ...]] = {}
    for shard in sorted(set(places.values())):
        if not SHARD.fullmatch(shard) or shard not in files:
            problem = "weight_map names a file that is none of the base's own safetensors"
            raise BaseError.at(files[INDEX], problem, f": {shard!r:.200}")
        found |= _shapes(files[shard])
    if missing := places.keys() - found.keys():
        raise BaseError.at(files[INDEX], "tensors are in none of the files it names", f": {len(missing)}")
    return found


def has_weights(files: Mapping[str, Path]) -> bool:
    """Return whether all files with weights are among the files of a base. Raises BaseError for a damaged index."""
    return WHOLE in files or (INDEX in files and set(_weight_map(files[INDEX]).values()) <= files.keys())


def _weight_map(index: Path) -> dict[str, str]:
    found = _json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise BaseError.at(index, "it has no weight_map from names to files")
    return places


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file; its header is checked against its size."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BaseError.at(path, "it is not a complete safetensors file", f": {error}") from error


def adapter(folder: Path) -> dict[str, Path]:
    """Return the files of an adapter if a folder has an adapter and no model; else none.

    Raises BaseError for an adapter that may not be read.
    """
    if not (folder / ADAPTER).exists() or any(map(is_weights, listed(folder))):
        return {}
    if not (folder / ADAPTED).exists():
        raise BaseError.at(
            folder / ADAPTER, f"the adapter has no {ADAPTED}; other formats can run code and are not read"
        )
    for name in (ADAPTER, ADAPTED):
        _check_regular(folder / name, folder)
    if (folder / ADAPTER).stat().st_size > MB:
        raise BaseError.at(folder / ADAPTER, f"it may have {MB} bytes")
    return {name: folder / name for name in (ADAPTER, ADAPTED)}


def _check_regular(path: Path, folder: Path) -> None:
    place = path.resolve()
    if path.is_symlink() and not _own(place, folder):
        raise BaseError.at(path, "it links to a place outside the base", f": {place}")
    try:
        found = place.stat()
    except OSError as error:
        raise BaseError.at(path, "it cannot be read", f": {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise BaseError.at(path, "it is not a regular file")
    check_size(path.name, found.st_size)
    if is_pointer(place):
        raise BaseError.at(path, CURE)


def _own(place: Path, folder: Path) -> bool:
    """Return whether a link's target is in the folder, or in the hub cache's blobs if the folder is a snapshot."""
    folder = folder.resolve()
    repository = folder.parent.parent
    blobs = [repository / "blobs"] if folder.parent.name == "snapshots" else []
    return any(place.is_relative_to(one) for one in (folder, *blobs))


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except JSONError as error:
        raise BaseError.at(path, str(error)) from error


def _check_counts(found: Any, path: Path) -> None:
    """Raise for counts above MOST: libraries build lists of that length before the weights can be compared."""
    for key, value in found.items() if isinstance(found, dict) else enumerate(found):
        if isinstance(value, dict | list):
            _check_counts(value, path)
        elif isinstance(value, int) and abs(value) > MOST and STACKED.search(str(key)):
            raise BaseError.at(
                path, f"above {MOST} layers, blocks or labels nothing is built", f": {key} = {value!s:.20}"
            )

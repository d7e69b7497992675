"""The settings that a run was started with: config.toml, and a copy with a hash in its checkpoints folder.

The copy shows whether config.toml was edited.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import xxhash

from task.modes import as_the_folder
from task.schema import ConfigError

LOG = logging.getLogger("flwr")
RESUME, FROM = "resume", "resume-from"  # keys of a process, not of the run
CONFIG = "config.toml"
PLACE = Path("checkpoints", "settings.json")  # path in a results folder


def write(folder: Path, flat: Mapping[str, Any]) -> None:
    """Write the configuration of the run to its results folder, with a copy and its hash."""
    settings = {key: value for key, value in flat.items() if key not in (RESUME, FROM)}
    draft = folder / f".{CONFIG}"
    draft.write_text(tomli_w.dumps(nested(settings)), encoding="utf-8")
    as_the_folder(draft)
    draft.replace(folder / CONFIG)
    _keep(folder, settings)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested tables, plain keys first, as TOML requires."""
    tables: dict[str, Any] = {key: value for key, value in flat.items() if "." not in key}
    for key, value in flat.items():
        if "." in key:
            table, name = key.split(".", 1)
            tables.setdefault(table, {})[name] = value
    return tables


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def _keep(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the copy of the settings and its hash."""
    place = folder / PLACE
    place.parent.mkdir(exist_ok=True)
    draft = place.with_suffix(".part")
    draft.write_text(json.dumps({"settings": settings, "xxh3": _hash(settings)}, indent=1) + "\n", encoding="utf-8")
    as_the_folder(draft)
    draft.replace(place)


def kept(folder: Path) -> dict[str, Any] | None:
    """Return the copy of the settings. Returns None with a warning for a run of an earlier version, which has no copy.

    Raises ConfigError if the copy is damaged.
    """
    place = folder / PLACE
    if not place.exists():
        LOG.warning("%s cannot be verified: an earlier version wrote it without a hash", folder)
        return None
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        settings: dict[str, Any] = found["settings"]
        whole = found["xxh3"] == _hash(settings)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ConfigError([f"{place} is damaged: the settings that the run was started with cannot be verified"])
    return settings


def _hash(settings: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(settings, sort_keys=True).encode())

"""The configuration of a run, without paths or passwords, so that the page can be shown to anyone."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server_app.results.page.markup import Html, folded, joined, table

HIDDEN = ("output-dir", "resume", "resume-from")  # about this machine, not about the run
USER = re.compile(r"//[^/@\s]*@")


def setting_tables(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Html:
    """Return the settings as folded tables: first those that differ from `defaults`, then all."""
    shown = {key: value for key, value in settings.items() if key not in HIDDEN}
    own = {key: value for key, value in shown.items() if key in defaults and value != defaults[key]}
    parts = [_table(f"{len(own)} keys that differ from their defaults", own), _table(f"All {len(shown)} keys", shown)]
    return joined(part for part, values in zip(parts, (own, shown), strict=True) if values)


def _table(title: str, values: Mapping[str, Any]) -> Html:
    return folded(
        title, table(["key", "value"], [[key, shown(value)] for key, value in values.items()], title, "texts")
    )


def shown(value: object) -> str:
    """Return a value as it may be shown to anyone: the last part of a path, and an address without its user."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if value.startswith(("/", "~")):
        return Path(value).name
    return USER.sub("//", value) if urlsplit(value).scheme else value

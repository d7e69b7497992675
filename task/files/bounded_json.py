"""Untrusted JSON: read with a limit on its depth, and one class of error."""

import json
from pathlib import Path
from typing import Any

DEEPEST = 64  # levels of nested tables and lists


class JSONError(ValueError):
    """A file that is not JSON, or nested too deeply."""


def read_json(path: Path) -> Any:
    """Return the content of a file. Raises JSONError, which names no path."""
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as error:
        raise JSONError(f"tables nested deeper than {DEEPEST}") from error
    except (OSError, ValueError) as error:
        raise JSONError("it is not JSON") from error
    _check_depth(found)
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(DEEPEST):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise JSONError(f"tables nested deeper than {DEEPEST}")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, dict | list)]
    return [child for child in value if isinstance(child, dict | list)] if isinstance(value, list) else []

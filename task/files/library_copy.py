"""The copy of a base that libraries read: only the listed files, with settings that name no other files.

A model's settings can name files: weights, vocabularies, code, an adapter's base. Libraries follow some of these names,
depending on the version. Therefore they get checked settings without such keys, and links to the base's own weights and
tokens.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from task.files.contents import SETTINGS, BaseError, listed, settings

# Keys that name files, folders or code: `tokenizer_file`, `_name_or_path`, `auto_map`, `transformers_weights`, ...
NAMING = re.compile(
    r"(^|_)(files?|paths?|dirs?|folders?|repos?|archive|url|auto_map|name_or_path|transformers_weights|custom_generate|"
    r"custom_pipelines|attn_implementation|experts_implementation)(_|$)"
)
# Keys whose values are tokens, class names or templates, which no library takes for paths.
WORDS = re.compile(r".*_tokens?(_decoder)?|id2label|label2id|content|chat_template|task_specific_params|never_split")
PATH = re.compile(r"[/~\\].*|.*(^|[/\\])\.\.([/\\]|$).*|(file|hf|s3|gs):/.*|.*[\0\n].*", re.DOTALL)
FETCHING = ("use_pretrained_backbone",)  # keys that ask for the weights of another model
PLAIN = ("eager", "sdpa", "flash_attention_2", "flex_attention")  # implementations of attention in the library itself


@contextmanager
def shown(base: Path) -> Iterator[Path]:
    """Yield a temporary folder with the files of a base that libraries may read. Raises BaseError."""
    with TemporaryDirectory(prefix="thistledown-base-") as folder:
        place = Path(folder)
        for name, path in listed(base).items():
            if name in SETTINGS:
                (place / name).write_text(json.dumps(without_names(settings(path), path)), encoding="utf-8")
            else:
                (place / name).symlink_to(path.resolve())
        yield place


def without_names(found: Any, path: Path) -> Any:
    """Return the settings without keys that name files. Raises BaseError for a path under any other key."""
    if isinstance(found, list):
        return [without_names(value, path) for value in found]
    if isinstance(found, str) and PATH.fullmatch(found):
        raise BaseError.at(path, "a setting leads out of the base", f": {found!r:.200}")
    if not isinstance(found, dict):
        return found
    kept = {key: value for key, value in found.items() if not _names_file(key, value)}
    return {key: value if WORDS.fullmatch(key) else without_names(value, path) for key, value in kept.items()}


def _names_file(key: str, value: Any) -> bool:
    """Return whether a key names a file. `drop_path_rate`, for example, is a number and not a path."""
    named = isinstance(value, str | list | dict) and value not in PLAIN and NAMING.search(key) is not None
    return named or key in FETCHING

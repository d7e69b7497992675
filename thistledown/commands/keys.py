"""`thistledown keys`: the run-config keys, with their defaults and meanings."""

import textwrap
from collections.abc import Iterator

from server_app.config import keys as all_keys
from task.foreign_names import FOREIGN, meant
from task.schema import ConfigError, Option
from thistledown.key_descriptions import accepted, default_of

WIDTH = 100


def keys(word: str) -> Iterator[str]:
    """Yield the keys whose name or meaning has a word, or for which another tool has it; all keys for an empty word.

    Raises ConfigError if there is none.
    """
    known, wanted = all_keys(), word.lower().replace("_", "-")
    instead = FOREIGN.get(wanted, "")
    found = {key: option for key, option in known.items() if wanted in key or key == instead}
    found |= {key: option for key, option in known.items() if wanted in option.doc.lower()}
    if not found:
        raise ConfigError([f"no key has '{word}' in its name or its meaning{meant(wanted, tuple(known))}"])
    for key, option in found.items():
        yield from _lines(key, option)


def _lines(key: str, option: Option) -> Iterator[str]:
    yield f"{key} = {default_of(option)}"
    for text in (option.doc, f"({accepted(key, option)})"):
        yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)

"""Checks of a tokenizer's file: its rules must not make texts grow without bound.

`tokenizer.json` has rules that rewrite texts one after another. Forty rules that double a text make 10^12 characters of
one, in compiled code that cannot be interrupted.
"""

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from task.files.bounded_json import JSONError, read_json
from task.files.contents import BaseError

RULES = 256
GROWTH = 1024  # largest factor by which all rules together may lengthen a text
PADDED = 2**20  # longest row in tokens after padding


def check_tokenizer(path: Path) -> None:
    """Raise BaseError for an invalid tokenizer.json, or one that lengthens texts or rows without bound."""
    try:
        found = read_json(path)
    except JSONError as error:
        raise BaseError.at(path, str(error)) from error
    _check(found, path)


def check_made(tokenizer: Any, base: Path) -> None:
    """Raise BaseError, by the same rules, for a tokenizer that a library made from other files, as sentencepiece's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        _check(json.loads(backend.to_str()), base / "tokenizer.json")


def _check(found: Any, path: Path) -> None:
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise BaseError.at(path, "it has no tokenizer")
    rules = [rule for part in ("normalizer", "pre_tokenizer") for rule in _rules(found.get(part))]
    if len(rules) > RULES:
        raise BaseError.at(path, f"more than {RULES} rules for texts are not read", f": {len(rules)}")
    if math.prod(map(_growth, rules)) > GROWTH:
        raise BaseError.at(path, f"its rules may lengthen a text more than {GROWTH} times")
    if _filled(found.get("padding")) > PADDED:
        raise BaseError.at(path, f"it fills rows up beyond {PADDED} tokens")


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    """Yield every rule in a tree of rules."""
    if isinstance(part, dict):
        yield part
    for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _rules(child)


def _growth(rule: dict[str, Any]) -> float:
    """Return the largest factor by which a rule may lengthen a text."""
    if rule.get("type") == "Precompiled":
        return _longest(rule.get("precompiled_charsmap"))
    if rule.get("type") == "Prepend":
        return 1 + len(str(rule.get("prepend", "")))
    if rule.get("type") != "Replace":
        return 1
    pattern = rule.get("pattern")
    plain = pattern.get("String") if isinstance(pattern, dict) else None
    content = len(str(rule.get("content", "")))
    if isinstance(plain, str) and plain:
        return max(1.0, content / len(plain))
    return 1 + content  # a regular expression may match between any two characters


def _longest(charsmap: Any) -> float:
    """Return the length of the longest replacement of one character in sentencepiece's table: the length of a search
    tree, the tree, and zero-terminated texts."""
    try:
        table = base64.b64decode(charsmap or "", validate=True)
    except (TypeError, ValueError):
        return 1  # the library refuses it
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(1, *map(len, texts.split(b"\0")))


def _filled(padding: Any) -> float:
    """Return the largest length of rows after padding."""
    if not isinstance(padding, dict):
        return 0.0
    strategy = padding.get("strategy")
    lengths = [*(strategy.values() if isinstance(strategy, dict) else ()), padding.get("pad_to_multiple_of")]
    return max((float(length) for length in lengths if isinstance(length, int)), default=0.0)

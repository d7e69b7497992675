"""What is asked of a source of rows."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TABS = ("tab", "\\t")  # a tab, as it can be written in a configuration
NO_TEXT = ("idna", "punycode", "undefined", "raw-unicode-escape", "unicode-escape")  # codecs that no file is in


@dataclass(frozen=True)
class Reading:
    """Which columns are read (None: all), which must be there, with the keys that name them, and how text is written.

    An empty `delimiter` or `encoding` is detected.
    """

    columns: tuple[str, ...] | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ""
    encoding: str = ""

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Return those of the columns that there are which are read, in their order."""
        return [name for name in names if self.columns is None or name in self.columns]


def delimiter_of(written: str) -> str:
    """Return the delimiter that a configuration names."""
    return "\t" if written.lower() in TABS else written


def delimiter_problem(written: str) -> str:
    """Return what is wrong with a delimiter, empty where nothing is."""
    if not written or (len(delimiter_of(written)) == 1 and delimiter_of(written) not in "\"\r\n'\0"):
        return ""
    return f"data.delimiter = {written!r} must be one character, such as ';', or 'tab'; empty: detected"


def encoding_problem(name: str) -> str:
    """Return what is wrong with an encoding, empty where nothing is."""
    try:
        known = codecs.lookup(name) if name else None
    except (LookupError, ValueError):
        return (
            f"data.encoding = {name!r:.80} is no known encoding; it is named as in Python: 'utf-8', 'cp1252', 'gb18030'"
        )
    if known and (not known._is_text_encoding or known.name.replace("_", "-") in NO_TEXT):
        return f"data.encoding = {name!r:.80} is no encoding of files; say 'utf-8', 'cp1252', 'gb18030'"
    return ""

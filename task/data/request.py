"""The request to a source of rows."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TABS = ("tab", "\\t")  # spellings of a tab in a configuration
NO_TEXT = (
    "idna",
    "punycode",
    "undefined",
    "raw-unicode-escape",
    "unicode-escape",
)  # codecs that are not encodings of files


@dataclass(frozen=True)
class Reading:
    """The columns to read (None: all), the required columns with the keys that name them, and the text format.

    An empty `delimiter` or `encoding` is detected.
    """

    columns: tuple[str, ...] | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ""
    encoding: str = ""

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Return the columns to read among the existing ones, in the order of the file."""
        return [name for name in names if self.columns is None or name in self.columns]


def delimiter_of(written: str) -> str:
    """Return the delimiter that a configuration names."""
    return "\t" if written.lower() in TABS else written


def delimiter_problem(written: str) -> str:
    """Return the problem of a delimiter; empty if it is valid."""
    if not written or (len(delimiter_of(written)) == 1 and delimiter_of(written) not in "\"\r\n'\0"):
        return ""
    return f"data.delimiter = {written!r} must be one character, such as ';', or 'tab'; empty: detected"


def encoding_problem(name: str) -> str:
    """Return the problem of an encoding; empty if it is valid."""
    try:
        known = codecs.lookup(name) if name else None
    except (LookupError, ValueError):
        return (
            f"data.encoding = {name!r:.80} is no known encoding; it is named as in Python: 'utf-8', 'cp1252', 'gb18030'"
        )
    if known and (not known._is_text_encoding or known.name.replace("_", "-") in NO_TEXT):
        return f"data.encoding = {name!r:.80} is no encoding of files; say 'utf-8', 'cp1252', 'gb18030'"
    return ""

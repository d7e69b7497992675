"""Pinned apps: a node runs only apps whose hash its owner has pinned.

The server sends the code that a node runs, so the server can change any promise of that code, unless somebody else has
read it. A pin is the SHA-256 of a bundle (FAB), as `thistledown app hash` prints it. It is compared with the hash of
the received bytes before they are unpacked. Names, versions and hashes from the server are ignored.
"""

import hashlib
import importlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = logging.getLogger("flwr")
HASH = re.compile(r"[0-9a-fA-F]{64}")
REFUSED = "this node does not run this app: its owner has not pinned it"  # the only text that the server gets
UNPACKED = "pinned"  # folder in Flower's home


class ForeignApp(RuntimeError):
    """An app that is not pinned. The message goes to the server."""


class PinError(ValueError):
    """Pins that cannot be read. The message names the place and what was expected."""


@dataclass(frozen=True)
class Pins:
    """Hashes from the owner, and files of hashes, which are read again for every message.

    A line of a file begins with a hash. Text after the hash, and lines that begin with #, are comments.
    """

    hashes: Sequence[str] = ()
    files: Sequence[Path] = ()

    def __bool__(self) -> bool:
        return bool(self.hashes or self.files)

    def read(self) -> frozenset[str]:
        """Return all pinned hashes in lower case. Raises PinError."""
        found = {_checked(text, "--app-hash") for text in self.hashes}
        for path in self.files:
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise PinError(f"--app-hashes {path} cannot be read: {error}") from error
            said = [(number, words) for number, line in enumerate(lines, 1) if (words := line.split())]
            found |= {_checked(words[0], f"{path}, line {number}") for number, words in said if words[0][0] != "#"}
        if not found:
            raise PinError(f"no app is pinned in {', '.join(map(str, self.files))}; `thistledown app hash` prints one")
        return frozenset(found)

    def check(self, content: bytes) -> str:
        """Return the hash of a bundle. Raises ForeignApp if it is not pinned, and logs its hash and the pins."""
        digest = hashlib.sha256(content).hexdigest()
        try:
            pinned = self.read()
        except PinError as error:
            LOG.error("refused the app %s: %s", digest, error)
            raise ForeignApp(REFUSED) from error
        if digest not in pinned:
            LOG.error("refused the app %s, which is not pinned; pinned are %s", digest, ", ".join(sorted(pinned)))
            raise ForeignApp(REFUSED)
        return digest

    def unpacked(self, content: bytes, install: Callable[..., Path]) -> Path:
        """Return the folder of a pinned bundle, which Flower's `install` unpacks the first time. Raises ForeignApp.

        Flower's own folder has eight digits of the hash in its name, and Flower does not check an existing folder.
        This folder has all 64 digits and appears only when it is complete.
        """
        from flwr.supercore.utils import get_flwr_home

        place = get_flwr_home() / UNPACKED / self.check(content)
        if not place.exists():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as draft:
                app = install(content, install_dir=Path(draft), skip_prompt=True)
                try:
                    os.rename(app, place)
                except OSError:  # another message was first
                    if not place.exists():
                        raise
                    shutil.rmtree(app, ignore_errors=True)
        return place


def enforce(pins: Pins) -> None:
    """Make this process, which serves one message, install and load only pinned apps.

    Raises RuntimeError if this version of Flower lacks the functions that are replaced.
    """
    flowers: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    if lacking := [name for name in ("install_from_fab", "get_project_dir", "get_load_client_app_fn")
                   if not hasattr(flowers, name)]:  # fmt: skip
        raise RuntimeError(f"this Flower loads apps in another way ({', '.join(lacking)}): pins cannot be enforced")
    install, load = flowers.install_from_fab, flowers.get_load_client_app_fn
    place: list[Path] = []

    def installed(content: bytes, **_: object) -> Path:
        place[:] = [pins.unpacked(content, install)]
        return place[0]

    # The loaded app is the checked one: the server's values (fab_id, fab_version, hash_str) do not select a folder.
    flowers.install_from_fab = installed
    flowers.get_project_dir = lambda *_: place[0]
    flowers.get_load_client_app_fn = lambda *_, **__: load("", str(place[0]), True)


def _checked(text: str, where: str) -> str:
    if not HASH.fullmatch(text):
        raise PinError(
            f"{where}: '{text:.80}' is not a hash of an app; expected 64 hexadecimal digits (`thistledown app hash`)"
        )
    return text.lower()

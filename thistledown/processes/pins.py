"""Which apps a node runs: those whose hash its owner has pinned.

The server sends the code that a node runs, so whatever that code promises is the server's to change, unless somebody
who is not the server has read it. A pin is the SHA-256 of a bundle (FAB), as `thistledown app hash` prints it. It is
compared with the hash of the bytes that came, before they are unpacked; names, versions and hashes that the server
says of them are not looked at.
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
REFUSED = "this node does not run this app: its owner has not pinned it"  # all that the server is told
UNPACKED = "pinned"  # folder in Flower's home


class ForeignApp(RuntimeError):
    """An app that is not pinned. The message goes to the server."""


class PinError(ValueError):
    """Pins that cannot be read; the message says where and what was expected."""


@dataclass(frozen=True)
class Pins:
    """Hashes that the owner gave, and files of hashes, which are read anew for every message.

    A line of a file begins with a hash; what follows it, and lines that begin with #, are comments.
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
        """Return the hash of a bundle that is pinned. Raises ForeignApp, and says both in the log."""
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

        Flower's own place has eight digits of the hash in its name, and what lies there already is not looked at.
        This one has all 64, and appears when it is complete.
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
    """Make this process, which serves one message, install and load nothing but a pinned app.

    Raises RuntimeError where Flower has no such functions any more.
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

    # What is loaded is what was checked: the server's words for it (fab_id, fab_version, hash_str) find no folder.
    flowers.install_from_fab = installed
    flowers.get_project_dir = lambda *_: place[0]
    flowers.get_load_client_app_fn = lambda *_, **__: load("", str(place[0]), True)


def _checked(text: str, where: str) -> str:
    if not HASH.fullmatch(text):
        raise PinError(f"{where}: '{text:.80}' is no hash of an app: 64 hexadecimal digits, as `thistledown app hash`")
    return text.lower()

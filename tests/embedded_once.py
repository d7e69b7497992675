"""The embedded base, trained once for all workers of pytest and kept for the next run.

Training takes 14 s of one core. The result is kept in `.pytest_cache`, under a hash of all that it depends on: the
sources that train it, and the versions of the libraries. `test_bases.py` trains it anew and compares the bits.
"""

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from task import seeds
from task.data.sources import digits
from task.models import embedded
from task.storage.store import Store

KEPT = Path(__file__).parents[1] / ".pytest_cache" / "embedded"
LIBRARIES = ("torch", "transformers", "scikit-learn", "numpy", "safetensors")


def put_embedded_base(store: Path) -> None:
    """Copy the embedded base into the store at this folder."""
    shutil.copytree(_kept_store().root / "embedded", store / "embedded")


def _kept_store() -> Store:
    """Return a store that holds the embedded base; other workers wait while one trains it."""
    KEPT.mkdir(parents=True, exist_ok=True)
    key = _key()
    with FileLock(KEPT / f"{key}.lock"):
        store = Store(KEPT / key)
        embedded.trained_base(store)
    return store


def _key() -> str:
    digest = hashlib.blake2b(digest_size=8)
    for module in (embedded, digits, seeds):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(repr([(name, version(name)) for name in LIBRARIES]).encode())
    return digest.hexdigest()

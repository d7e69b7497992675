"""Results folders: one per run, with the link `latest` to the newest; a resumed run writes to its old folder."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server_app.config import RunConfig
from task.schema import ConfigError
from task.storage.room import is_full

OUTPUTS = "output-dir ="  # before the folder in messages
GO_TO = "results go to "  # followed by the folder in the log; the command parses it


def output_folder(run: RunConfig) -> Path:
    """Create `<outputs>/<time>-<strategy>`, link `<outputs>/latest` to it and return it.

    For a run that is resumed, return its folder.
    """
    if run.server.resume:
        return Path(run.server.resume)
    outputs = Path(run.server.output_dir or Path.cwd() / "outputs")
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{run.strategy.name}"
    with writable(outputs):
        outputs.mkdir(parents=True, exist_ok=True)
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
        folder = next(outputs / name for name in names if _made(outputs / name))
        draft = outputs / f".latest-{folder.name}"
        draft.symlink_to(folder.name, target_is_directory=True)
        draft.replace(outputs / "latest")
    return folder


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


@contextmanager
def writable(outputs: Path) -> Iterator[None]:
    """Raise ConfigError for outputs that cannot be written. A full disk is not a ConfigError."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError([unwritable(outputs, error)]) from error


def unwritable(outputs: Path, error: OSError, setting: str = OUTPUTS) -> str:
    """Return the error message for outputs that cannot be written, which `setting` names."""
    return f"{setting} '{outputs}' cannot be written: {error.strerror}; name a folder that this user may write"


def problem_of(outputs: Path, setting: str = OUTPUTS) -> str:
    """Return why results cannot be written to `outputs`, which `setting` names, or "" if they can. A temporary file
    tests it."""
    place = next(path for path in (outputs, *outputs.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return "" if is_full(error) else unwritable(outputs, error, setting)

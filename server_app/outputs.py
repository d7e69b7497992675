"""Where results go: a folder for every run, `latest` pointing to the newest, or the folder of the run to resume."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server_app.config import RunConfig
from task.schema import ConfigError
from task.storage.room import is_full

GO_TO = "results go to "  # what the log says of them, before the folder: the command looks for it


def output_folder(run: RunConfig) -> Path:
    """`<outputs>/<time>-<strategy>`, made here, and `<outputs>/latest` points to it; or that of the run to resume."""
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
    """Within this, outputs that cannot be written are a ConfigError; a full disk is none."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError([unwritable(outputs, error)]) from error


def unwritable(outputs: Path, error: OSError) -> str:
    """Return what to say of outputs that cannot be written."""
    return f"output-dir = '{outputs}' cannot be written: {error.strerror}; name a folder that this user may write"


def problem_of(outputs: Path) -> str:
    """Return why results could not be written there, "" if they could. Nothing stays of the file that is tried."""
    place = next(path for path in (outputs, *outputs.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return "" if is_full(error) else unwritable(outputs, error)

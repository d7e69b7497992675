"""The files of an app that Flower bundles, copied to their own folder.

`flwr run` visits every file below the app's folder before it excludes most of them. With a virtual environment in that
folder, this takes longer than the rest of a start.
"""

import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from flwr.cli.build import build_fab_from_disk, get_user_fab_patterns
from flwr.cli.utils import build_pathspec, filter_paths_for_publish, load_gitignore_patterns
from flwr.common.constant import FAB_CONFIG_FILE, FAB_EXCLUDE_PATTERNS

from thistledown.processes.environment import PACKAGES
from thistledown.settings import INSTALLED

ANY = "any"  # a file name that no pattern matches


def gathered(app: Path, place: Path) -> Path:
    """Copy the files that match the app's patterns to the new folder `place` and return it.

    Flower builds the same bundle from both folders. Raises ValueError for patterns that Flower does not accept.
    """
    include, exclude = get_user_fab_patterns(tomllib.loads((app / FAB_CONFIG_FILE).read_text(encoding="utf-8")))
    named = build_pathspec([*(include or ["**"]), *(exclude or []), FAB_CONFIG_FILE])
    for name, path in filter_paths_for_publish(candidates(app)).items():
        if named.match_file(name):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(path), place / name)
    return place


def app_hash(app: Path) -> str:
    """Return the SHA-256 of the bundle that `flwr run` and `thistledown run` send for this app, in hexadecimal.

    It depends on the app's files and on the libraries that pack them (tomli-w, zlib). Raises ValueError for an app
    that Flower does not accept.
    """
    with tempfile.TemporaryDirectory() as folder:
        return hashlib.sha256(build_fab_from_disk(gathered(app, Path(folder, "app")))).hexdigest()


def candidates(app: Path) -> dict[str, Path | bytes]:
    """Return the files of the app by relative path, as Flower collects them: without links.

    Folders that Flower excludes or git ignores are not entered. The modules of the installed app are where Python
    imports them from.
    """
    ignored = build_pathspec([*FAB_EXCLUDE_PATTERNS, *load_gitignore_patterns(app / ".gitignore")]).match_file
    files = _below(app, app, ignored)
    if app == INSTALLED:
        for name in PACKAGES:
            files |= _below(INSTALLED.parents[1] / name, INSTALLED.parents[1], ignored)
    return files


def _below(folder: Path, root: Path, ignored: Callable[[str], bool]) -> dict[str, Path | bytes]:
    """Return the files below the folder by path relative to `root`."""
    files: dict[str, Path | bytes] = {}
    for place, below, names in os.walk(folder):
        inside = Path(place).relative_to(root)
        below[:] = [name for name in below if not ignored((inside / name / ANY).as_posix())]
        found = {(inside / name).as_posix(): Path(place, name) for name in names}
        files |= {name: path for name, path in found.items() if not path.is_symlink()}
    return files

"""A clone of this repository: every file that git does not ignore, and none of what an environment and runs leave."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECRETS = re.compile(  # private keys, and tokens of model hubs, code hosts, package indices and clouds
    rb"-----BEGIN [A-Z ]*PRIVATE KEY|\b(?:hf|ghp|gho|glpat|pypi)[_-][A-Za-z0-9_-]{20,}"
    rb"|\bAKIA[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9]{20,}"
)


def unignored() -> list[str]:
    """Files that are there and that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def clone(folder: Path) -> Path:
    """Copy them into a new folder, and return that."""
    for name in unignored():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder

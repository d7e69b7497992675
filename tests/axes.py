"""The axes along which thistledown is extended, and the extensions there are: one file each."""

from functools import cache
from pathlib import Path

from task.extensions import NOT_EXTENSIONS

ROOT = Path(__file__).parents[1]
AXES = {  # the folder of each axis
    "strategy": "strategies",
    "wrapper": "strategies/wrappers",
    "server-optimizer": "strategies/optimizers",
    "tuning": "task/tunings",
    "kind": "task/kinds",
    "partitioner": "task/data/partitioners",
    "source": "task/data/sources",
    "tracker": "server_app/callbacks/trackers",
}


@cache
def extensions(axis: str) -> frozenset[str]:
    """Return the names of the extensions of an axis."""
    files = [file.stem for file in (ROOT / AXES[axis]).glob("[!_]*.py")]
    return frozenset(name.replace("_", "-") for name in files if name not in NOT_EXTENSIONS)

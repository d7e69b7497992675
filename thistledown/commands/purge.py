"""`thistledown purge`: list the items in stores with their size and age, and remove them by kind and age.

Items that can be created or fetched again are removed. Others, such as a node's privacy account, its private tensors or
anything unknown to this version, are removed only if their kind is named.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from task.schema import ConfigError
from task.storage.retention import Kept, inventory
from task.storage.store import Store, node_store, server_store

REMADE = {
    "bases", "data", "embedded", "features", "fingerprints", "grounds", "journals", "indexes", "precision", "splits",
    "widened",
}  # fmt: skip
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}  # seconds
ABANDONED = UNITS["d"]  # age from which a draft counts as abandoned
Say = Callable[[str], None]


def purge(store_path: Path | None, kinds: Sequence[str], older_than: str, yes: bool, say: Say) -> None:
    """List the items in the stores, mark the chosen ones, and remove them if `yes`.

    The stores are those of this user's server and nodes, or `store_path`. Raises ConfigError.
    """
    age = seconds(older_than) if older_than else 0.0
    stores = [Store(store_path.expanduser())] if store_path else [server_store(), node_store()]
    if store_path and not stores[0].root.is_dir():
        raise ConfigError([f"--store-path {store_path}: the folder does not exist"])
    there = {thing.kind for store in stores for thing in inventory(store)}
    if unknown := [kind for kind in kinds if kind not in there | REMADE]:
        raise ConfigError([f"--kind {kind}: the store has {', '.join(sorted(there)) or 'nothing'}" for kind in unknown])
    for store in stores:
        _one(store, kinds, age, yes, say)


def seconds(age: str) -> float:
    """Return the seconds in an age such as `30d` or `12h`. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age)
    if found is None:
        raise ConfigError([f"--older-than {age}: write a number and one of {', '.join(UNITS)}, such as 30d"])
    return float(found[1]) * UNITS[found[2]]


def _one(store: Store, kinds: Sequence[str], age: float, yes: bool, say: Say) -> None:
    things = inventory(store)
    say(f"{store.root}: {_counted(things)}")
    chosen = list(_chosen(things, kinds, age))
    for thing in sorted(things, key=lambda thing: (thing.kind, -thing.used)):
        mark = ("removed" if yes else "would go") if thing in chosen else ""
        source = f"  from {thing.source}" if thing.source else ""
        say(f"  {mark:<8}  {thing.kind:<12}  {thing.key:<32.32}  {_size(thing.bytes):>9}  {_age(thing):>5}{source}")
    for thing in chosen if yes else ():
        store.remove(thing.kind, thing.key)
    if things:
        say(f"  removed {_counted(chosen)}" if yes else f"  {_counted(chosen)} would go; --yes removes them")


def _chosen(things: Sequence[Kept], kinds: Sequence[str], age: float) -> Iterator[Kept]:
    for thing in things:
        idle = time.time() - thing.used
        draft = thing.key.startswith(".")  # another process may still be writing it
        if thing.kind in (kinds or REMADE) and idle >= (max(age, ABANDONED) if draft else age):
            yield thing


def _counted(things: Sequence[Kept]) -> str:
    count = len(things)
    return f"{count} thing{'s' if count != 1 else ''}, {_size(sum(thing.bytes for thing in things))}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _age(thing: Kept) -> str:
    idle = max(time.time() - thing.used, 0.0)
    unit = next((unit for unit in ("d", "h", "m") if idle >= UNITS[unit]), "s")
    return f"{idle / UNITS[unit]:.0f} {unit}"

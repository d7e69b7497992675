"""Find the base of a run. On the server: by hub id or folder, or the embedded one. On a node: in its own store, by the
same name, or in an offer of the server.
"""

import logging
from collections.abc import Mapping

from task.config import EMBEDDED_MODEL, Model
from task.files.contents import BaseError, adapter, check, check_size, has_weights, listed, may_be_named
from task.models.base import FINGERPRINT, Base, content_hash, examine, fingerprint, located, named_folder, sized
from task.models.embedded import embedded_base
from task.models.merged import merged
from task.storage import seal
from task.storage.retention import trim
from task.storage.store import Store

LOG = logging.getLogger("flwr")
BASES = "bases"  # the kind of thing in a store: offered bases
NO_ROOM = "this node's store has no room for the offered base"


class BaseMissing(BaseError):
    """A base that a node does not have, or no longer has. The server may offer it."""


def server_base(model: Model, store: Store, bare: bool = False, weights: bool = True) -> Base:
    """Return the base that a run starts from, on the server. Raises BaseError.

    A `bare` base is not read. Without `weights` its weights are not even fetched, and if they are not there, nobody
    here knows its fingerprint.
    """
    if model.name == EMBEDDED_MODEL:
        folder = embedded_base(store)
    elif adapter(folder := located(model, bare=not weights)):
        folder = merged(folder, store)
    elif not weights and not has_weights(check(folder, bare=True)):
        return Base(model.name, folder, "", bare)
    else:
        check(folder)
    return Base(model.name, folder, fingerprint(folder, store), bare)


def node_base(model: Model, wanted: str, store: Store, paths: bool = True) -> Base:
    """Return the base with the fingerprint `wanted`, on a node; `model.name` may be a path only if `paths`.

    Raises BaseMissing if the node lacks it. Its public message is the same whatever was found at that name.
    """
    if not FINGERPRINT.fullmatch(wanted):
        raise BaseError(f"{wanted[:80]!r} is not a fingerprint", "the base in the instructions is not a fingerprint")
    _adopt(store, wanted)
    if store.holds(BASES, wanted):
        return Base(model.name, store.path(BASES, wanted), wanted)
    message = f"neither the store {store.root} nor model.name = '{model.name}' has the base {wanted}"
    try:
        if model.name != EMBEDDED_MODEL and fingerprint(folder := named_folder(model, paths), store) == wanted:
            return Base(model.name, folder, wanted)
    except BaseError as error:
        message += f": {error}"
    raise BaseMissing(message, f"it lacks the base {wanted}")


def kept_bases(store: Store) -> list[str]:
    """Return the fingerprints of the bases in a node's store."""
    names = [path.name for path in sorted(store.path(BASES, "").glob("*")) if FINGERPRINT.fullmatch(path.name)]
    for name in names:
        _adopt(store, name)
    return [name for name in names if store.holds(BASES, name)]


def named_base(model: Model, store: Store, paths: bool = True) -> str:
    """Return the fingerprint of the base that `model.name` names on this node (a path only if `paths`); empty if there
    is none."""
    if model.name == EMBEDDED_MODEL:
        return ""
    try:
        return fingerprint(named_folder(model, paths), store)
    except BaseError as error:
        LOG.info("model.name is not available here; the server may offer it: %s", error)
        return ""


def _adopt(store: Store, wanted: str) -> None:
    """Check a base stored by an earlier version, which wrote no hashes of its files, against its fingerprint."""
    place = store.path(BASES, wanted)
    if not place.exists() or seal.sealed(place):
        return
    try:
        examine(place)
        whole = content_hash(sized(listed(place))) == wanted
    except BaseError as error:
        LOG.warning("%s", error)
        whole = False
    if whole:
        seal.write(place, "an offer of the server")
    else:
        LOG.warning("the base %s is not what its fingerprint says; it is removed from the store", wanted)
        store.remove(BASES, wanted)


def accept_offer(contents: Mapping[str, bytes | memoryview], wanted: str, store: Store) -> None:
    """Store a base that the server sent.

    Nothing is written if a name is bad, the content differs from the announced one, or the store has too little room.
    A base that cannot be read is not kept. Raises BaseError.
    """
    if bad := [name for name in contents if not may_be_named(name)]:
        raise BaseError(f"the offered base has bad file names: {bad!r:.500}", "the offered base has bad file names")
    for name, data in contents.items():
        check_size(name, len(data))
    if content_hash({name: (len(data), [data]) for name, data in contents.items()}) != wanted:
        raise BaseError(message := f"the offered base is not {wanted}", message)
    if over := trim(store, sum(len(data) for data in contents.values())):
        raise BaseError(f"the store {store.root} has {over} bytes too little room for the offered base", NO_ROOM)
    with store.made(BASES, wanted, "an offer of the server") as draft:
        if draft is not None:
            for name, data in contents.items():
                (draft / name).write_bytes(data)
            examine(draft)

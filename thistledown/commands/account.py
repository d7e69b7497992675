"""`thistledown account`: the privacy budget that the data sets of a node have spent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client_app.account import KIND, SUFFIX, read_lines, total
from strategies.algebra.accountant import accountant_of, epsilon_of
from task.schema import ConfigError
from task.storage.store import node_store


def accounts(folder: Path | None, delta: float) -> Iterator[str]:
    """Return a report of all accounts. `folder` is a store or a folder of accounts; None: the store of this machine.

    Raises ConfigError for an invalid delta and for a folder that does not exist, AccountError for a damaged account.
    """
    if not 0 < delta < 1:
        raise ConfigError([f"--delta = {delta:g} must be between 0 and 1"])
    if folder is not None and not folder.is_dir():
        raise ConfigError([f"{folder} is no folder; name a node's store-path or account-path"])
    place = folder or node_store().root
    paths = sorted(path for where in (place, place / KIND) for path in where.glob(f"*{SUFFIX}"))
    if not paths:
        yield f"no account in {place}: the node has sent no private reply"
    for path in paths:
        yield from _account(path, delta)


def _account(path: Path, delta: float) -> Iterator[str]:
    first, *lines = read_lines(path)
    yield f"{first['account']}  ({path})"
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault(line["run"], []).append(line)
    for own in runs.values():
        wrappers = ", ".join(sorted({line["wrapper"] for line in own}))
        when = f"{own[0]['time']} to {own[-1]['time']}"
        cost = epsilon_of(total(own), delta)
        yield f"  a run of {own[0]['node']}, {when}: {len(own)} messages, {wrappers}, epsilon {cost:.2f}"
    spent = total(lines)
    how = accountant_of(spent, delta)
    yield f"  in all: epsilon {epsilon_of(spent, delta):.2f} at delta {delta:g} (by {how}), {len(lines)} messages"

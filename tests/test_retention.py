"""Stores do not grow for ever: prepared rows go, oldest first, and what only an owner may remove stays."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples import scans, vision_base

from task.config import Model, TaskConfig
from task.data.prepared import prepare
from task.models.base import files
from task.models.finding import accept_offer, kept_bases, server_base
from task.schema import ConfigError
from task.storage import seal
from task.storage.retention import RECENT, inventory, trim
from task.storage.store import Store, server_store
from thistledown.commands.purge import purge, seconds
from thistledown.main import main

DAY = 86400.0


def keep(store: Store, kind: str, key: str, size: int, age: float, source: str = "") -> Path:
    with store.made(kind, key, source) as folder:
        assert folder is not None
        (folder / "x").write_bytes(bytes(size))
    place = store.path(kind, key)
    os.utime(place, (time.time() - age,) * 2)
    return place


def account(store: Store) -> Path:
    place = store.path("accounts", "a.jsonl")
    place.parent.mkdir(parents=True)
    place.write_text("{}\n")
    os.utime(place, (0, 0))
    return place


def there(store: Store) -> set[str]:
    return {f"{thing.kind}/{thing.key}" for thing in inventory(store)}


def test_rows_that_were_not_used_for_longest_go_first(store: Store) -> None:
    for day in (1, 2, 3):
        keep(store, "data", f"rows-{day}", 1000, day * DAY)
    keep(store, "bases", "0" * 32, 5000, 99 * DAY)
    account(store)
    limited = Store(store.root, limit=sum(thing.bytes for thing in inventory(store)) - 1)
    assert trim(limited) == 0
    assert there(store) == {"data/rows-1", "data/rows-2", "bases/" + "0" * 32, "accounts/a.jsonl"}
    assert trim(limited, coming=10**6) > 0  # all rows are not enough
    assert there(store) == {"bases/" + "0" * 32, "accounts/a.jsonl"}


def test_what_was_just_used_stays(store: Store) -> None:
    """Another process may be between finding and mapping it."""
    keep(store, "data", "old", 1000, RECENT + 60)
    keep(store, "data", "used", 1000, RECENT + 60)
    assert store.holds("data", "used")
    assert trim(Store(store.root, limit=10)) > 0
    assert there(store) == {"data/used"}


def test_rows_of_a_file_that_changes_do_not_pile_up(tmp_path: Path) -> None:
    base, path = vision_base(tmp_path / "vision"), tmp_path / "rows.npz"
    config = TaskConfig.read({"model.name": "given", "data.name": str(path), "data.test-split": ""})
    images, labels = scans(200)
    store = Store(tmp_path / "store", limit=60_000)
    for change in range(6):
        np.savez(path, x_train=images + np.uint8(change), y_train=labels)
        prepare(config, base, store)
        for thing in inventory(store):
            os.utime(thing.path, (thing.used - 2 * RECENT,) * 2)
    assert sum(thing.bytes for thing in inventory(store)) < 60_000 + 20_000
    assert len(list(store.root.glob("data/*"))) < 6
    newest = max(inventory(store), key=lambda thing: thing.used)
    assert str(path) in newest.source


def test_a_base_has_room_made_for_it(tmp_path: Path) -> None:
    base = server_base(Model(), server_store())
    contents = {name: path.read_bytes() for name, path in files(base.folder).items()}
    size = sum(map(len, contents.values()))
    store = Store(tmp_path, limit=size + 10_000)
    keep(store, "data", "rows", size, DAY)
    accept_offer(contents, base.fingerprint, store)
    assert kept_bases(store) == [base.fingerprint]
    assert not store.path("data", "rows").exists()


READER = """
import sys
from pathlib import Path
from task.data.rows import mapped
from task.storage.store import Store

store = Store(Path(sys.argv[1]))
for number in range(300):
    with store.made("data", "rows") as draft:
        if draft is not None:
            import numpy as np
            np.save(draft / "x.npy", np.arange(1000))
    try:
        rows = mapped(store.path("data", "rows") / "x.npy")
    except FileNotFoundError:
        continue  # it went between two looks, and is made again
    assert rows.sum() == 499500
print("done")
"""


def test_who_reads_never_sees_half_of_what_is_removed(store: Store) -> None:
    reader = subprocess.Popen([sys.executable, "-c", READER, str(store.root)], stdout=subprocess.PIPE, text=True)
    while reader.poll() is None:
        store.remove("data", "rows")
    assert reader.communicate()[0] == "done\n"
    assert reader.returncode == 0


# ---------------------------------------------------------------------- thistledown purge


@pytest.fixture
def full(store: Store) -> Store:
    keep(store, "data", "rows", 2_000_000, 40 * DAY, "/srv/clinic.csv, for /srv/base")
    keep(store, "data", "fresh", 10, 1)
    keep(store, "bases", "0" * 32, 10, 40 * DAY)
    keep(store, "own", "tensors", 10, 40 * DAY)
    keep(store, "unheard-of", "thing", 10, 40 * DAY)
    account(store)
    return store


ALL = {"data/rows", "data/fresh", "bases/" + "0" * 32, "own/tensors", "unheard-of/thing", "accounts/a.jsonl"}


def test_it_says_what_is_there_and_removes_nothing(full: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", "--store-path", str(full.root), "--older-than", "30d"]) == 0
    said = capsys.readouterr().out
    assert "data          rows" in said
    assert "2 MB   40 d  from /srv/clinic.csv, for /srv/base" in said
    assert "2 things, 2 MB would go; --yes removes them" in said
    assert there(full) == ALL


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--older-than", "30d"], {"data/rows", "bases/" + "0" * 32}),
        (["--kind", "data"], {"data/rows", "data/fresh"}),
        (["--kind", "data,own", "--older-than", "1w"], {"data/rows", "own/tensors"}),
        ([], {"data/rows", "data/fresh", "bases/" + "0" * 32}),
        (["--kind", "accounts"], {"accounts/a.jsonl"}),
        (["--kind", "unheard-of"], {"unheard-of/thing"}),
    ],
)
def test_it_removes_what_is_chosen(full: Store, options: list[str], gone: set[str]) -> None:
    """Never an account, private tensors or what it does not know, unless these are named."""
    assert main(["purge", "--store-path", str(full.root), "--yes", *options]) == 0
    assert there(full) == ALL - gone


def test_drafts_of_killed_processes_go_after_a_day(store: Store) -> None:
    for age in (60.0, 2 * DAY):
        draft = store.path("data", f".draft-{age:.0f}")
        draft.mkdir(parents=True)
        os.utime(draft, (time.time() - age,) * 2)
    purge(store.root, [], "", True, print)
    assert there(store) == {"data/.draft-60"}


@pytest.mark.parametrize("age", ["30", "d", "-1d", "30 days", "1y"])
def test_an_age_that_is_none_is_said(full: Store, age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", "--store-path", str(full.root), f"--older-than={age}"]) == 2
    assert "such as 30d" in capsys.readouterr().err


def test_ages_and_kinds(full: Store) -> None:
    assert [seconds(age) for age in ("1s", "2m", "1.5h", "30d", "1w")] == [1, 120, 5400, 30 * DAY, 7 * DAY]
    with pytest.raises(ConfigError, match="--kind nonsense: the store has accounts, bases"):
        purge(full.root, ["nonsense"], "", True, print)
    with pytest.raises(ConfigError, match="the folder does not exist"):
        purge(full.root / "nowhere", [], "", False, print)


def test_by_default_it_looks_at_this_users_stores(capsys: pytest.CaptureFixture[str]) -> None:
    server_base(Model(), server_store())
    assert main(["purge"]) == 0
    said = capsys.readouterr().out
    assert f"{server_store().root}: " in said
    assert "embedded" in said
    seal._whole.clear()
    assert server_store().holds("embedded", next(iter(server_store().path("embedded", "").iterdir())).name)


def test_an_empty_store_is_no_error(tmp_path: Path) -> None:
    assert replace(Store(tmp_path)) == Store(tmp_path)
    purge(tmp_path, [], "", True, print)
